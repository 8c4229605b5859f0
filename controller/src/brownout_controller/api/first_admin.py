"""The first user, without whom nobody could make another."""

from brownout_controller.access.decisions import Grant
from brownout_controller.access.permissions import Role
from brownout_controller.access.token_form import Token, new_token
from brownout_controller.store.access import AccessStore, UserExists, token_row

FIRST_USER = "admin"
FIRST_TOKEN_TTL_S = 24 * 3600
"""Time enough to make users; `brownout server admin-token` prints another one on the controller itself."""


def first_admin(access: AccessStore) -> Token | None:
    """A token for the user `admin`, who is made with it; None where there are users already."""
    if access.users():
        return None
    try:
        access.add_user(FIRST_USER, [Grant(Role.ADMIN)])
    except UserExists:  # another controller was first
        return None
    return admin_token(access)


def admin_token(access: AccessStore) -> Token:
    """A fresh token for the user `admin`: for whoever is root on the controller, and so may do anything anyway."""
    token = new_token()
    access.add_token(token_row(token, FIRST_USER, "local", FIRST_TOKEN_TTL_S, "first steps"))
    return token
