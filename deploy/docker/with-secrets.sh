#!/bin/sh
# with-secrets COMMAND…: libpq takes the database's password from a variable, or from a file that only its owner can read,
# which a container's secrets are not. PGPASSWORD_FILE names such a secret.
set -eu
if [ -n "${PGPASSWORD_FILE:-}" ]; then
    PGPASSWORD=$(cat "$PGPASSWORD_FILE")
    export PGPASSWORD
fi
exec "$@"
