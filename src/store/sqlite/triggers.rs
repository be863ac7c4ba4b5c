//! What reports changes to the feed: a column of each table, an index of it, and triggers.
//!
//! # A table is its own log
//!
//! The triggers of a table write to that table alone. In SQLite a trigger whose target is missing makes
//! the write fail that fires it, and every `ALTER TABLE … RENAME` in the database too
//! (<https://www.sqlite.org/lang_altertable.html#altertabrename>). Others own this database: Alembic
//! proposes to drop any table that it does not know, so a table of changes of our own would put all
//! writes of the service at risk. The table that a trigger is on cannot be missing, because the trigger
//! goes with it.
//!
//! So each row carries the number of its latest change, which is NULL until the first one. Nothing
//! grows, and nothing has to be pruned. A number is a count, times two, plus one where a row came or got
//! another hash. The next change takes the next count; whoever reads the rows with higher numbers than it
//! has seen has all changes, provided that no count is left out. Counts are left out where a row has been
//! changed twice, and on purpose where a change leaves no row behind to carry it: by a deletion, by an id
//! that becomes another, and by a row that comes with a number, which may be that of another one. Then
//! anything may have changed.
//!
//! A table in which no row has a number begins anywhere, so that the same number does not come twice.

/// What reports the changes of a table.
pub(super) struct Report {
    pub(super) add_column: &'static str,
    pub(super) parts: [Part; 6],
}

/// An index or a trigger. SQLite keeps the statement that creates it as it is.
pub(super) struct Part {
    pub(super) name: &'static str,
    pub(super) create: &'static str,
    pub(super) drop: &'static str,
}

macro_rules! part {
    ($kind:literal $name:expr, $($rest:expr),+) => {
        Part {
            name: $name,
            create: concat!("CREATE ", $kind, " ", $name, " ", $($rest),+),
            drop: concat!("DROP ", $kind, " ", $name),
        }
    };
}

/// `OR REPLACE` removes rows without firing their triggers for deletions
/// (<https://www.sqlite.org/lang_conflict.html>), so insertions and updates are looked at before they happen. What
/// becomes of a row that is written to before its own update is undefined
/// (<https://www.sqlite.org/lang_createtrigger.html>), so another one carries the number.
macro_rules! report {
    ($table:literal, $what:literal: id $(, $column:literal)*; unique: $($unique:literal)?; added: $added:literal) => {
        Report {
            add_column: concat!("ALTER TABLE ", $table, " ADD COLUMN lexikon_auth_change INTEGER"),
            parts: [
                part!("INDEX" concat!("lexikon_auth_", $what, "_changes"),
                    "ON ", $table, " (lexikon_auth_change)\n",
                    "    WHERE lexikon_auth_change IS NOT NULL"),
                part!("TRIGGER" concat!("lexikon_auth_", $what, "_added"),
                    "AFTER INSERT ON ", $table, " BEGIN\n",
                    "    UPDATE ", $table, " SET lexikon_auth_change = 2 + ", latest!($table), "\n",
                    "        + 2 * (NEW.lexikon_auth_change IS NOT NULL) WHERE id = NEW.id;\n",
                    "END"),
                part!("TRIGGER" concat!("lexikon_auth_", $what, "_changed"),
                    "AFTER UPDATE\n",
                    "    OF id", $(", ", $column,)* " ON ", $table, "\n",
                    "    WHEN (OLD.id", $(", OLD.", $column,)* ")\n",
                    "        IS NOT (NEW.id", $(", NEW.", $column,)* ") BEGIN\n",
                    "    UPDATE ", $table, " SET lexikon_auth_change = 1 + ", latest!($table), "\n",
                    "        + ", $added, " + 2 * (OLD.id IS NOT NEW.id) WHERE id = NEW.id;\n",
                    "END"),
                part!("TRIGGER" concat!("lexikon_auth_", $what, "_deleted"),
                    "AFTER DELETE ON ", $table, " BEGIN\n",
                    "    UPDATE ", $table, " SET lexikon_auth_change = 3\n",
                    "        + max(", latest!($table), ", coalesce(OLD.lexikon_auth_change, 0) | 1)\n",
                    "        WHERE id = ", survivor!($table, "true"), ";\n",
                    "END"),
                part!("TRIGGER" concat!("lexikon_auth_", $what, "_replaced"),
                    "BEFORE INSERT ON ", $table, "\n",
                    "    WHEN EXISTS (SELECT 1 FROM ", $table,
                    " WHERE id = NEW.id", $(" OR ", $unique, " = NEW.", $unique,)? ") BEGIN\n",
                    "    UPDATE ", $table, " SET lexikon_auth_change = 3 + ", latest!($table), "\n",
                    "        WHERE id = ",
                    survivor!($table, concat!("id <> NEW.id", $(" AND ", $unique, " <> NEW.", $unique)?)),
                    ";\n",
                    "END"),
                part!("TRIGGER" concat!("lexikon_auth_", $what, "_overwritten"),
                    "BEFORE UPDATE\n",
                    "    OF id", $(", ", $unique,)? " ON ", $table, "\n",
                    "    WHEN EXISTS (SELECT 1 FROM ", $table, " WHERE id <> OLD.id\n",
                    "        AND (id = NEW.id", $(" OR ", $unique, " = NEW.", $unique,)? ")) BEGIN\n",
                    "    UPDATE ", $table, " SET lexikon_auth_change = 3 + ", latest!($table), "\n",
                    "        WHERE id = ",
                    survivor!($table, concat!(
                        "id NOT IN (OLD.id, NEW.id)" $(, " AND ", $unique, " <> NEW.", $unique)?
                    )),
                    ";\n",
                    "END"),
            ],
        }
    };
}

/// The latest number, with that of an addition in place of that of a change.
macro_rules! latest {
    ($table:literal) => {
        concat!(
            "(coalesce((SELECT max(lexikon_auth_change)\n        FROM ",
            $table,
            " WHERE lexikon_auth_change IS NOT NULL), random() & 0xfffffffffffffff) | 1)"
        )
    };
}

/// A row that stays, and carries the number of a deletion.
macro_rules! survivor {
    ($table:literal, $condition:expr) => {
        concat!(
            "coalesce(\n",
            "            (SELECT id FROM ",
            $table,
            " WHERE lexikon_auth_change IS NOT NULL AND ",
            $condition,
            "\n",
            "                ORDER BY lexikon_auth_change DESC LIMIT 1),\n",
            "            (SELECT id FROM ",
            $table,
            " WHERE ",
            $condition,
            " LIMIT 1))"
        )
    };
}

/// All changes of keys but those of `last_used_at`, which the service writes with every request, and of
/// other columns that no decision depends on.
const KEYS: Report = report!(
    "api_keys", "key": id, "user_id", "key_hash", "name", "scopes", "is_active", "expires_at";
    unique: "key_hash"; added: "(OLD.key_hash IS NOT NEW.key_hash)"
);

/// Owners that are enabled, disabled, added or removed.
const OWNERS: Report = report!("users", "owner": id, "is_active"; unique: ; added: "0");

pub(super) const REPORTS: [Report; 2] = [KEYS, OWNERS];
