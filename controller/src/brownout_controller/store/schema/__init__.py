"""The tables, as SQLAlchemy Core knows them, one file a subject. Times are nanoseconds since the Unix epoch."""

from brownout_controller.store.schema import access as access
from brownout_controller.store.schema import audit as audit
from brownout_controller.store.schema import authority as authority
from brownout_controller.store.schema import firing as firing
from brownout_controller.store.schema import identities as identities
from brownout_controller.store.schema import levers as levers
from brownout_controller.store.schema import logins as logins
from brownout_controller.store.schema import owners as owners
from brownout_controller.store.schema import runs as runs
from brownout_controller.store.schema.metadata import metadata as metadata
