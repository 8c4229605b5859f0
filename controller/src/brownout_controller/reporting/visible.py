"""Text that others wrote, made harmless to look at: nothing in it can move a cursor, hide, or reorder what is shown."""


def visible(text: object) -> str:
    r"""The text with control, format and bidirectional characters written out: ESC as `\x1b`, U+202E as `\u202e`.

    Line breaks and every other kind of white space become a space: every caller shows one line.
    """
    return "".join(_shown(character) for character in str(text))


def _shown(character: str) -> str:
    if character.isprintable():
        return character
    if character.isspace():
        return " "
    code = ord(character)
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
