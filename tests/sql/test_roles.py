"""The roles of a PostgreSQL database may do what they are for, and nothing else; tried by connecting as each."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Final

import psycopg
import pytest
from psycopg import errors, sql
from sqlalchemy import make_url

from acp_store import (
    BackendUnavailableError,
    Capability,
    ConfigurationError,
    ConflictError,
    Repository,
    SchemaError,
    SQLRepository,
    migrate,
    open_repository,
)
from acp_store.backends.sql.rights import FUNCTIONS, WRITER
from acp_store.backends.sql.roles import Roles, apply_roles, roles_sql
from acp_store.models import VIEWS, Base
from acp_store.testing import factories as make
from tests.servers import Postgres
from tests.sql.roles import ODD_SCHEMA, Place, new_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TABLES: Final = sorted(WRITER)


@pytest.fixture(scope="module")
def server(unused_postgres: Postgres) -> Iterator[Postgres]:
    """A server whose roles are ours."""
    with Postgres(unused_postgres) as server:
        yield server


@pytest.fixture(scope="module", params=[None, ODD_SCHEMA], ids=["public", "odd"])
def place(request: pytest.FixtureRequest, server: Postgres) -> Place:
    """A migrated database with its three roles, with one run and one session, for tests that change none of it."""
    place = new_place(server, request.param)
    place.upgrade()
    assert place.apply() == place.roles.names
    with open_repository(place.url, schema=place.schema) as repository:
        repository.save_run(make.run())
        repository.add_event("run-1", make.generic_event())
        repository.append_messages("session-1", [make.message()])
    return place


@pytest.fixture(params=[None, ODD_SCHEMA], ids=["public", "odd"])
def fresh(request: pytest.FixtureRequest, server: Postgres) -> Place:
    """A migrated database without roles."""
    place = new_place(server, request.param)
    place.upgrade()
    return place


@pytest.fixture
def plain(server: Postgres) -> Place:
    """The same, in the schema public."""
    place = new_place(server, None)
    place.upgrade()
    return place


class Watched:
    """A repository that notes which of its methods are asked for."""

    def __init__(self, repository: Repository) -> None:
        self.asked: set[str] = set()
        self._repository = repository

    def __getattr__(self, name: str) -> Any:
        self.asked.add(name)
        return getattr(self._repository, name)


def use(repository: Any) -> None:
    """Do everything a repository does."""
    assert Capability.AUDIT in repository.capabilities
    assert repository.limits.calls > 0
    run = repository.save_run(make.run("r", session_id="s"), expected_version=0)
    repository.save_run(run.start(), expected_version=1)
    subscription = repository.subscribe("r", lambda: None)
    repository.add_event("r", make.generic_event(1))
    subscription.close()
    for _ in range(2):
        assert repository.add_event("r", make.generic_event(2), key="key").seq == 2
    repository.add_events("r", [make.generic_event(3)] * 3)
    repository.add_events("r", [make.generic_event(4)] * 200)
    repository.append_messages("s", [make.message()] * 3, state={"a": 1})
    repository.save_session(make.session("s", history=[make.message("other")]))
    with repository.transaction() as inside:
        inside.add_event("only events", make.generic_event())
        inside.save_session(make.session("t"))
    assert repository.erase_event("r", 1)
    repository.save_run(run.complete())
    assert len(list(repository.watch_events("r", after=200, timeout=0.1))) == 5
    assert len(repository.get_events("r")) == 100
    assert repository.get_events_json("r", 1) != b"[]"
    assert repository.get_run("r").status == repository.get_status("r") == "completed"
    assert len(repository.get_session("s").history) == 1
    assert repository.list_runs(agent_name="echo", session_id="s", status="completed").total == 1
    assert repository.list_ids("runs", limit=1000).ids == ["only events", "r"]
    assert repository.verify("r").ok
    assert repository.stats().events == 206
    assert repository.ping()
    assert repository.delete_run("r")
    assert repository.delete_session("s")
    repository.clear()
    assert repository.list_ids("sessions").ids == []


def use_as(owner: Any, nobody: Any) -> None:
    """Do in an owner's name what is worded differently there."""
    nobody.save_run(make.run("nobody's"))
    owner.save_run(make.run("r", session_id="s"), expected_version=0)
    owner.save_run(make.run("r", session_id="s"), expected_version=1)
    owner.save_run(make.run("r", session_id="s"))
    for count in (1, 3, 200):
        owner.add_events("r", [make.generic_event(count)] * count)
        owner.add_events("only events", [make.generic_event(count)] * count)
    owner.append_messages("s", [make.message()])
    owner.save_session(make.session("s"))
    with pytest.raises(ConflictError):
        owner.save_run(make.run("nobody's"))
    for count in (1, 3, 200):
        with pytest.raises(ConflictError):
            owner.add_events("nobody's", [make.generic_event(1)] * count)
    assert owner.get_run("r").owner == "alice"
    assert len(owner.get_events("r", 1000)) == 204
    assert owner.list_runs(order="status").total == 1
    assert owner.list_ids("runs").ids == ["only events", "r"]
    assert owner.verify("r").ok
    assert owner.erase_event("r", 1)
    assert owner.stats().events == 408
    assert not owner.delete_run("nobody's")
    assert owner.delete_run("r")
    assert owner.delete_session("s")
    owner.clear()
    assert nobody.list_ids("runs").ids == ["nobody's"]
    nobody.clear()


def public_names(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_a_server_works_as_the_writer(fresh: Place) -> None:
    """With the rights of a writer every method of a repository works, and deleting leaves its record."""
    fresh.apply()
    with open_repository(fresh.url_of(fresh.roles.writer), schema=fresh.schema) as repository:
        watched = Watched(repository)
        use(watched)
        assert watched.for_owner("alice").ping()
    assert public_names(Repository) - watched.asked <= {"close"}
    with fresh.connected() as db:
        tombstones = db.execute("SELECT id, kind, event_count FROM acp_tombstones ORDER BY id").fetchall()
    assert tombstones == [("only events", "run", 1), ("r", "run", 205), ("s", "session", 0), ("t", "session", 0)]


def test_a_server_works_in_an_owners_name(fresh: Place) -> None:
    """The rights of a writer are enough for what is done in an owner's name."""
    fresh.apply()
    with open_repository(fresh.url_of(fresh.roles.writer), schema=fresh.schema) as repository:
        use_as(repository.for_owner("alice"), repository)


def test_a_host_works_as_the_writer(fresh: Place) -> None:
    """The same inside of a host's transaction, which may also ask for the upgrade that was made already."""
    from tests.hosts import host_engine

    fresh.apply()
    url = fresh.url_of(fresh.roles.writer)
    open_repository(url, schema=fresh.schema, upgrade=True).close()
    engine = host_engine(url)
    with engine.begin() as connection:
        repository = SQLRepository(connection, schema=fresh.schema)
        repository.save_run(make.run())
        repository.add_events("run-1", [make.generic_event()] * 2)
        assert repository.verify("run-1").ok
        assert repository.delete_run("run-1")
    engine.dispose()


FORBIDDEN: Final = [
    "UPDATE acp_events SET digest = NULL",
    "UPDATE acp_events SET payload = '{}'",
    "DELETE FROM acp_events",
    "UPDATE acp_run_status_history SET actor = 'somebody else'",
    "DELETE FROM acp_run_status_history",
    "DELETE FROM acp_runs",
    "DELETE FROM acp_sessions",
    "DELETE FROM acp_event_heads",
    "INSERT INTO acp_tombstones DEFAULT VALUES",
    "UPDATE acp_tombstones SET actor = NULL",
    "DELETE FROM acp_tombstones",
    "INSERT INTO acp_erasures DEFAULT VALUES",
    "UPDATE acp_erasures SET actor = NULL",
    "DELETE FROM acp_erasures",
    "UPDATE acp_alembic_version SET version_num = '0001'",
    "MERGE INTO acp_events e USING (SELECT 1) x ON true WHEN MATCHED THEN DELETE",
    "INSERT INTO acp_events SELECT * FROM acp_events ON CONFLICT (run_id, seq) DO UPDATE SET payload = '{}'",
    *[f"TRUNCATE {table} CASCADE" for table in TABLES],
    *[f"DROP TABLE {table}" for table in TABLES],
    *[f"DROP VIEW {view}" for view in VIEWS],
    *[f"DROP FUNCTION {function}" for function in FUNCTIONS],
    *[f"ALTER FUNCTION {function} SECURITY INVOKER" for function in FUNCTIONS],
    "ALTER TABLE acp_runs ADD COLUMN mine text",
    "ALTER TABLE acp_run_status_history DISABLE TRIGGER ALL",
    "ALTER TABLE acp_events OWNER TO CURRENT_USER",
    "ALTER VIEW audit_events OWNER TO CURRENT_USER",
    "CREATE TABLE mine (id int)",
    "CREATE VIEW mine AS SELECT 1",
    "CREATE INDEX ON acp_runs (mode)",
    "CREATE RULE mine AS ON INSERT TO acp_events DO INSTEAD NOTHING",
    "CREATE TRIGGER mine BEFORE INSERT ON acp_events EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE FUNCTION replace(text, text, text) RETURNS text LANGUAGE sql AS 'SELECT ''mine'''",
    "CREATE OR REPLACE FUNCTION acp_erase_event(text, bigint, text, text, text) RETURNS boolean LANGUAGE sql AS ''",
    "SET session_replication_role = replica",
    "SET SESSION AUTHORIZATION postgres",
]


@pytest.mark.parametrize("role", ["writer", "auditor"])
def test_what_is_forbidden(role: str, place: Place) -> None:
    """Neither what is only appended to, nor the tables, views and functions themselves, are theirs to change."""
    with place.connected(getattr(place.roles, role)) as db:
        assert [statement for statement in FORBIDDEN if not is_refused(db, statement)] == []


def is_refused(db: psycopg.Connection[Any], statement: str) -> bool:
    try:
        db.execute(statement.encode())
    except errors.InsufficientPrivilege:
        return True
    return False


def test_nobody_becomes_another(place: Place) -> None:
    """Neither writer nor auditor can become the migrator, nor hand on what it has."""
    for role in (place.roles.writer, place.roles.auditor):
        with place.connected(role) as db:
            for other in {*place.roles.names, "postgres"} - {role}:
                with pytest.raises(errors.InsufficientPrivilege):
                    db.execute(sql.SQL("SET ROLE {}").format(sql.Identifier(other)))
            before = rights(place)
            db.execute("GRANT ALL ON audit_events TO PUBLIC")  # PostgreSQL warns, and grants nothing
            assert rights(place) == before


def test_an_auditor_reads_every_view(place: Place) -> None:
    """Each view answers, those that read another view too."""
    with place.connected(place.roles.auditor) as db:
        for view in VIEWS:
            db.execute(f"SELECT * FROM {view}")
        assert db.execute("SELECT count(*) FROM audit_events").fetchone() == (1,)
        assert db.execute("SELECT text FROM audit_messages WHERE session_id = 'session-1'").fetchone() == ("hello",)


def test_an_auditor_reads_nothing_else(place: Place) -> None:
    """Of all that is in the schema an auditor reads the views and nothing else, and calls no function."""
    with place.connected() as admin:
        schema = place.schema or "public"
        relations = admin.execute(
            "SELECT relname FROM pg_class WHERE relnamespace = CAST(%s AS regnamespace) AND relkind <> 'i'",
            [sql.Identifier(schema).as_string(None)],
        ).fetchall()
        functions = admin.execute(
            "SELECT CAST(oid AS regprocedure), pronargs FROM pg_proc WHERE pronamespace = CAST(%s AS regnamespace)",
            [sql.Identifier(schema).as_string(None)],
        ).fetchall()
    assert {name for (name,) in relations} == {*WRITER, *VIEWS}
    assert sorted(name for name, _ in functions) == sorted(each.replace(", ", ",") for each in FUNCTIONS)
    with place.connected(place.roles.auditor) as db:
        for (table,) in relations:
            if table not in VIEWS:
                with pytest.raises(errors.InsufficientPrivilege):
                    db.execute(f"SELECT FROM {table}".encode())
        for name, count in functions:
            with pytest.raises(errors.InsufficientPrivilege):
                db.execute(f"SELECT {name.partition('(')[0]}({', '.join(['NULL'] * count)})".encode())


def test_an_auditor_with_a_repository(place: Place) -> None:
    """A program that is set up with the wrong role is told so by the error that it expects."""
    repository = SQLRepository(place.url_of(place.roles.auditor), schema=place.schema)
    calls: list[Callable[[], object]] = [
        lambda: repository.get_run("run-1"),
        lambda: repository.save_run(make.run()),
        lambda: repository.add_event("run-1", make.generic_event()),
        lambda: repository.delete_run("run-1"),
        repository.clear,
    ]
    for call in calls:
        with pytest.raises(ConfigurationError, match="permission denied"):
            call()
    repository.close()


def test_a_writer_without_a_function(fresh: Place) -> None:
    """Where a right is missing, the call fails as one of configuration, and nothing is deleted."""
    fresh.apply()
    with fresh.connected() as admin:
        admin.execute(
            f"REVOKE ALL ON FUNCTION {FUNCTIONS[0]} FROM {sql.Identifier(fresh.roles.writer or '').as_string(None)}"
        )
    with open_repository(fresh.url_of(fresh.roles.writer), schema=fresh.schema) as repository:
        repository.save_run(make.run())
        with pytest.raises(ConfigurationError, match="permission denied for function acp_delete_run"):
            repository.delete_run("run-1")
        assert repository.get_run("run-1")


def test_a_temporary_table_hides_none(place: Place) -> None:
    """A writer who makes temporary tables of our names has the functions work on the real ones all the same."""
    with open_repository(place.url, schema=place.schema) as repository, place.connected(place.roles.writer) as db:
        repository.save_run(make.run("hidden"))
        repository.add_event("hidden", make.generic_event())
        for table in TABLES:
            db.execute(f"CREATE TEMP TABLE {table} (LIKE {table})")
        db.execute("CREATE FUNCTION pg_temp.sha256(bytea) RETURNS bytea LANGUAGE sql AS 'SELECT NULL::bytea'")
        db.execute("SET search_path = pg_temp")
        deleted = sql.SQL("SELECT {}('hidden', 'w', NULL, NULL)").format(
            sql.Identifier(place.schema or "public", "acp_delete_run")
        )
        assert db.execute(deleted).fetchone() == (True,)
        assert db.execute("SELECT count(*) FROM pg_temp.acp_tombstones").fetchone() == (0,)
        assert repository.get_run("hidden") is None
        assert repository.get_events("hidden") == []
        assert repository.verify("hidden").ok
    with place.connected() as admin:
        tombstone = admin.execute("SELECT event_count, length(digest) FROM acp_tombstones WHERE id = 'hidden'")
        assert tombstone.fetchone() == (1, 32)


def test_a_migrator_migrates(fresh: Place) -> None:
    """A migrator takes everything down and up again; then the roles are set up again, by itself too."""
    fresh.apply()
    url = fresh.url_of(fresh.roles.migrator)
    before = rights(fresh)
    migrate.downgrade(url, "base", schema=fresh.schema)
    migrate.upgrade(url, schema=fresh.schema)
    with (
        open_repository(fresh.url_of(fresh.roles.writer), schema=fresh.schema) as repository,
        pytest.raises(ConfigurationError),
    ):
        repository.save_run(make.run())
    again = Roles(writer=fresh.roles.writer, auditor=fresh.roles.auditor)
    assert apply_roles(url, again, schema=fresh.schema).created == []
    assert rights(fresh) == before
    assert fresh.apply() == []
    assert rights(fresh) == before


def test_a_migrator_comes_first(server: Postgres) -> None:
    """In an empty database a migrator is made before there is a table, and then makes them."""
    place = new_place(server, None)
    assert place.apply(migrator=place.roles.migrator) == [place.roles.migrator]
    migrate.upgrade(place.url_of(place.roles.migrator))
    assert place.apply() == [place.roles.writer, place.roles.auditor]
    with place.connected() as admin:
        owners = admin.execute("SELECT DISTINCT tableowner FROM pg_tables WHERE tablename LIKE 'acp%'").fetchall()
    assert owners == [(place.roles.migrator,)]


def test_what_a_role_had_is_taken_away(fresh: Place) -> None:
    """Whatever they or everybody had before, afterwards the roles have the same; also by the SQL that is printed."""
    fresh.apply()
    before = rights(fresh)
    assert fresh.apply() == []
    assert rights(fresh) == before
    schema, writer, auditor = (
        sql.Identifier(name or "public").as_string(None)
        for name in (fresh.schema, fresh.roles.writer, fresh.roles.auditor)
    )
    text = roles_sql(fresh.url, fresh.roles, schema=fresh.schema)
    for run in (fresh.apply, lambda: connect_and_run(fresh, text)):
        with fresh.connected() as admin:
            for who in (f"{writer} WITH GRANT OPTION", f"{auditor} WITH GRANT OPTION", "PUBLIC"):
                admin.execute(f"GRANT CREATE ON SCHEMA {schema} TO {who}".encode())
                admin.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA {schema} TO {who}".encode())
                admin.execute(f"GRANT ALL ON ALL FUNCTIONS IN SCHEMA {schema} TO {who}".encode())
                admin.execute(f"GRANT UPDATE (payload) ON acp_events TO {who}".encode())
        with fresh.connected(fresh.roles.writer) as db:
            db.execute("GRANT DELETE ON acp_events TO pg_monitor")
        assert rights(fresh) != before
        run()
        assert rights(fresh) == before


def connect_and_run(place: Place, text: str) -> None:
    """What psql does with a file."""
    with psycopg.connect(place.url, autocommit=True) as db:
        db.execute(text.encode())


def rights(place: Place) -> set[tuple[Any, ...]]:
    """Who owns what there, and who may do what with it."""
    schema = sql.Identifier(place.schema or "public").as_string(None)
    with place.connected() as admin:
        return set(
            admin.execute(
                """
                WITH objects (name, owner, acl) AS (
                    SELECT relname, relowner, coalesce(relacl, acldefault('r', relowner)) FROM pg_class
                    WHERE relnamespace = CAST(%(schema)s AS regnamespace)
                    UNION ALL SELECT proname, proowner, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
                    WHERE pronamespace = CAST(%(schema)s AS regnamespace)
                    UNION ALL SELECT nspname, nspowner, coalesce(nspacl, acldefault('n', nspowner)) FROM pg_namespace
                    WHERE oid = CAST(%(schema)s AS regnamespace)
                    UNION ALL SELECT attrelid || attname, 0, attacl FROM pg_attribute WHERE attacl IS NOT NULL
                        AND attrelid = 'acp_events'::regclass
                )
                SELECT name, pg_get_userbyid(owner), pg_get_userbyid(a.grantee), a.privilege_type, a.is_grantable
                FROM objects, LATERAL aclexplode(acl) AS a
                """,
                {"schema": schema},
            )
        )


HINDRANCES: Final = {
    "ALTER ROLE {role} SUPERUSER": "is a superuser, whom no rights bind",
    "ALTER TABLE acp_events OWNER TO {role}": "owns acp_events or is a member of its owner",
    "GRANT {owner} TO {role}": "or is a member of its owner: name another role as the migrator",
    "ALTER DATABASE {database} OWNER TO {role}": "may create objects in the schema all the same",
    "GRANT pg_write_all_data TO {role}": "all the same, as a member of another role",
    "GRANT pg_read_all_data TO {role}": "all the same, as a member of another role",
}


@pytest.mark.parametrize("hindrance", HINDRANCES)
def test_a_role_that_could_do_more(hindrance: str, plain: Place) -> None:
    """A role that has more in a way that is not ours to close is refused by name, and nothing is changed."""
    owner = f"owner_{plain.roles.writer}"
    names = {"role": plain.roles.auditor, "owner": owner, "database": make_url(plain.url).database}
    with plain.connected() as admin:
        admin.execute(f"CREATE ROLE {owner}")
        admin.execute(f"CREATE ROLE {plain.roles.auditor} LOGIN")
        for table in TABLES:
            admin.execute(f"ALTER TABLE {table} OWNER TO {owner}")
        admin.execute(hindrance.format(**names).encode())
        before = rights(plain)
        with pytest.raises(ConfigurationError) as caught:
            plain.apply(writer=plain.roles.writer, auditor=plain.roles.auditor)
        assert f"role {plain.roles.auditor} " in str(caught.value)
        assert HINDRANCES[hindrance] in str(caught.value)
        assert rights(plain) == before
        assert admin.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", [plain.roles.writer]).fetchone() is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("GRANT EXECUTE ON FUNCTION acp_delete_run(text, text, text, text) TO {group}", "may execute"),
        ("GRANT UPDATE (payload) ON acp_events TO {group}", "may update in acp_events"),
        ("GRANT SELECT (payload) ON acp_events TO {group}", "may select in acp_events"),
        ("ALTER FUNCTION acp_delete_session(text, text, text, text) OWNER TO {role}", "owns acp_delete_session"),
    ],
)
def test_a_right_by_another_way(given: str, said: str, plain: Place) -> None:
    """A function or a single column that a role reaches by a group, or owns, is found too."""
    group = f"group_{plain.roles.auditor}"
    with plain.connected() as admin:
        admin.execute(f"CREATE ROLE {group}")
        admin.execute(f"CREATE ROLE {plain.roles.auditor} LOGIN IN ROLE {group}")
        admin.execute(given.format(group=group, role=plain.roles.auditor).encode())
        with pytest.raises(ConfigurationError, match=f"{plain.roles.auditor} {said}"):
            plain.apply(writer=plain.roles.writer, auditor=plain.roles.auditor)


def test_the_role_of_before_becomes_the_writer(plain: Place) -> None:
    """A role that has done everything so far becomes the writer in one step, once there is another migrator."""
    writer = plain.roles.writer
    with plain.connected() as admin:
        admin.execute(f"CREATE ROLE {writer} LOGIN")
        for relation in (*TABLES, *VIEWS):
            admin.execute(f"ALTER TABLE {relation} OWNER TO {writer}")
        for function in FUNCTIONS:
            admin.execute(f"ALTER FUNCTION {function} OWNER TO {writer}")
    plain.apply()
    with open_repository(plain.url_of(writer)) as repository:
        use(repository)


def test_only_who_may(plain: Place) -> None:
    """A role that owns nothing is refused, and nothing is changed."""
    plain.apply()
    before = rights(plain)
    for role in (plain.roles.writer, plain.roles.auditor):
        with pytest.raises(ConfigurationError, match=r"permission denied|has another owner"):
            apply_roles(plain.url_of(role), plain.roles)
    assert rights(plain) == before


def test_tables_of_an_older_version(server: Postgres) -> None:
    """Where there are no views yet, the error says to upgrade."""
    place = new_place(server, None)
    migrate.upgrade(place.url, "0003")
    with pytest.raises(SchemaError, match="acp-store db upgrade"):
        place.apply()


def test_again_beside_writers(plain: Place) -> None:
    """Set up again, nothing waits for those who use the tables, nor do they wait."""
    plain.apply()
    with plain.connected() as db, db.transaction():
        db.execute("SELECT FROM acp_runs")
        db.execute("LOCK TABLE acp_events IN ROW EXCLUSIVE MODE")
        plain.apply()


def test_a_table_that_is_used_for_long(plain: Place) -> None:
    """A first time that would have writers wait for long is given up, and nothing is changed."""
    before = rights(plain)
    with plain.connected() as db, db.transaction():
        db.execute("SELECT FROM acp_runs")
        with pytest.raises(BackendUnavailableError, match="lock timeout"):
            plain.apply()
    assert rights(plain) == before


def test_several_at_once(plain: Place) -> None:
    """Replicas that set up the roles at the same moment do not get into each other's way."""
    ready = threading.Barrier(4)

    def apply() -> list[str]:
        ready.wait()
        return plain.apply()

    with ThreadPoolExecutor(4) as pool:
        created = [future.result() for future in [pool.submit(apply) for _ in range(4)]]
    assert sorted(created) == [[], [], [], plain.roles.names]


def test_where_the_tables_are(server: Postgres) -> None:
    """Without a schema it is the one where the role of the URL finds the tables, else the one it would create in."""
    place = new_place(server, ODD_SCHEMA)
    place.upgrade()
    path = f"{place.url}?options=-csearch_path%3D%22%24user%22%2C%22Weird%5C%20%22%22schema%22%22.x%22"
    assert roles_sql(path, place.roles) == roles_sql(place.url, place.roles, schema=ODD_SCHEMA)
    assert roles_sql(place.url, place.roles) == roles_sql("postgresql://unreachable", place.roles, schema="public")
    with pytest.raises(ConfigurationError, match="--schema"):
        roles_sql(f"{place.url}?options=-csearch_path%3Dnowhere", place.roles)


@pytest.mark.parametrize(
    "names", [("public",), ("none",), ("pg_mine",), ("",), ("x" * 64,), ("é" * 32,), ("a\0b",), ("\ud800",), ("a", "a")]
)
def test_names_of_no_role(names: tuple[str, ...]) -> None:
    """A name that PostgreSQL would take for everybody, cut or refuse is refused before."""
    with pytest.raises(ConfigurationError, match=r"^role "):
        Roles(*names)


def test_every_table_has_its_rights() -> None:
    """A table that is new needs a decision what a writer may do in it."""
    assert set(Base.metadata.tables) == set(WRITER) - {"acp_alembic_version"}
