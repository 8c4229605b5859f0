"""The REST API under `/api/v1`: JSON over TLS, a token in every request, a permission on every route."""
