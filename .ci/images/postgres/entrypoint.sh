#!/bin/sh
# The part of the official image's contract that suites use: POSTGRES_PASSWORD, POSTGRES_USER, POSTGRES_DB, port 5432,
# and the server's ready line on standard error (that of the initialisation goes to standard output).
set -eu

bin=$(ls -d /usr/lib/postgresql/*/bin | sort -V | tail -n 1)
PATH="$bin:$PATH"
export PATH

case "${1:-postgres}" in
-*) set -- postgres "$@" ;;
postgres) ;;
*) exec "$@" ;;
esac

if [ "$(id -u)" = 0 ]; then
    chown postgres:postgres "$PGDATA"
    exec setpriv --reuid=postgres --regid=postgres --init-groups "$0" "$@"
fi

user=${POSTGRES_USER:-postgres}
database=${POSTGRES_DB:-$user}
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    if [ -z "${POSTGRES_PASSWORD:-}" ]; then
        echo "error: POSTGRES_PASSWORD is not set, and a superuser without a password is not made" >&2
        exit 1
    fi
    secret=$(mktemp)
    printf '%s\n' "$POSTGRES_PASSWORD" >"$secret"
    initdb -D "$PGDATA" --username="$user" --pwfile="$secret" --auth-host=scram-sha-256 --auth-local=trust --encoding=UTF8 \
        --locale=C.UTF-8
    rm -f "$secret"
    printf 'host all all all scram-sha-256\n' >>"$PGDATA/pg_hba.conf"
    printf "listen_addresses = '*'\n" >>"$PGDATA/postgresql.conf"
    if [ "$database" != postgres ]; then
        pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" --wait start
        psql -v ON_ERROR_STOP=1 --username="$user" --dbname=postgres -v name="$database" <<-'SQL'
			CREATE DATABASE :"name";
		SQL
        pg_ctl -D "$PGDATA" -m fast --wait stop
    fi
fi
exec "$@"
