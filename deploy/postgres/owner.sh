#!/bin/sh
# Once, when the server's folder is made: the tables' owner and the database. `prefixserve migrate` makes the rest.
set -eu
psql --no-psqlrc -v ON_ERROR_STOP=1 -v password="$(cat /run/secrets/postgres_owner_password)" --dbname postgres <<'SQL'
CREATE ROLE prefixserve_owner LOGIN CREATEROLE PASSWORD :'password';
CREATE DATABASE prefixserve OWNER prefixserve_owner;
SQL
