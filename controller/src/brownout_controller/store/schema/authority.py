"""Whose cluster a shared database is, and what its controllers sign with."""

from sqlalchemy import Column, Integer, LargeBinary, String, Table

from brownout_controller.store.schema.metadata import metadata

authority = Table(
    "authority",
    metadata,
    Column("number", Integer, primary_key=True, autoincrement=False),  # always 1: a database has one cluster
    Column("cluster", String(36), nullable=False),
    Column("sealed", LargeBinary),  # NULL while only the controller that has the folder can sign
)
