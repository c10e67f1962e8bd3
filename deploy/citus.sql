-- Makes the servers of compose.citus.yaml known to their coordinator. It may be run again.
\set ON_ERROR_STOP on

\connect - - worker-1
CREATE EXTENSION IF NOT EXISTS citus;

\connect - - worker-2
CREATE EXTENSION IF NOT EXISTS citus;

\connect - - coordinator
CREATE EXTENSION IF NOT EXISTS citus;
SELECT citus_set_coordinator_host('coordinator', 5432);
SELECT citus_add_node('worker-1', 5432);
SELECT citus_add_node('worker-2', 5432);
