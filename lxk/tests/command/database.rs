//! The database that commands work on: whether it can be used, and who may read it.

use lexikon_auth::store::SqliteStore;
use lexikon_auth_tests::{assert_reveals_nothing, postgres};

use crate::operator::{Answer, COMMANDS, Desk};

#[test]
fn a_database_that_cannot_be_used_is_named_with_what_to_do() {
    let desk = Desk::without_database().without("DATABASE_URL");
    desk.lxk(&["list"]).fails(2, "set DATABASE_URL");
    let list = |url: &str| desk.lxk(&["--database-url", url, "list"]);
    list("mysql://localhost/keys").fails(2, "neither sqlite: nor postgres:");
    list("postgres://operator:hidden-word@127.0.0.1:1/keys").fails(3, "127.0.0.1:1");
    list("sqlite:///no/such/folder/keys.db").fails(3, "lxk schema apply --create");
    let malformed = list("postgres://operator:hidden-word@[::/keys").fails(2, "cannot be read");
    let refused = list("postgres://operator:hidden-word@127.0.0.1:1/keys");
    let driver = list("postgresql+asyncpg://operator:hidden-word@127.0.0.1:1/keys");
    let driver = driver.fails(3, "127.0.0.1:1");
    let elsewhere = list("mysql+pymysql://operator:hidden-word@127.0.0.1:1/keys").ends_with(2);
    for answer in [malformed, refused, driver, elsewhere] {
        assert_reveals_nothing(&answer.err, "hidden-word@");
    }

    // Not a database, an empty one, and one with other tables.
    let path = desk.folder.path().join("text");
    let url = format!("sqlite://{}", path.display());
    std::fs::write(&path, "anything but a database, and long enough to be looked at".repeat(20))
        .unwrap();
    list(&url).fails(3, "cannot be read");
    std::fs::write(&path, "").unwrap();
    list(&url).fails(1, "no table api_keys");
    assert_eq!(std::fs::metadata(&path).unwrap().len(), 0, "a look makes no tables");
    desk.run_sql_on(&path, "CREATE TABLE api_keys (id VARCHAR, colour VARCHAR)");
    list(&url).fails(3, "unknown schema");
}

#[tokio::test(flavor = "multi_thread")]
async fn databases_are_named_as_sqlalchemy_does_too() {
    let desk = Desk::new();
    let (id, _) = desk.issue("user-1", "deploy");
    let in_folder = |url: &str, arguments: &[&str]| {
        let mut command = desk.command(&[&["--database-url", url], arguments].concat());
        command.current_dir(desk.folder.path());
        Answer::of(command)
    };
    // With four slashes a path is absolute for both, with a driver or without.
    let [with_driver, without] = ["sqlite+aiosqlite", "sqlite"]
        .map(|scheme| format!("{scheme}:///{}", desk.path().display()));
    for url in ["sqlite+aiosqlite:///keys.db", &with_driver, &without] {
        in_folder(url, &["show", &id]).ends_with(0).prints("deploy");
        // It does not look like PostgreSQL to a check.
        in_folder(url, &["preflight"]).ends_with(0);
    }
    in_folder("sqlite:///keys.db", &["list"]).fails(3, "/keys.db cannot be opened");
    in_folder("sqlite+aiosqlite://", &["list"]).fails(2, "names no file");

    let options = postgres::database().await;
    let (port, name) = (options.get_port(), options.get_database().unwrap());
    let url = format!("postgresql+asyncpg://postgres@127.0.0.1:{port}/{name}?ssl=prefer");
    let desk = Desk::without_database().with("DATABASE_URL", url);
    desk.lxk(&["schema", "apply", "--create"]).ends_with(0);
    let (id, _) = desk.issue("user-1", "deploy");
    desk.lxk(&["show", &id]).ends_with(0).prints("deploy");
}

#[test]
fn every_command_says_what_is_wrong_with_its_database() {
    let desk = Desk::without_database();
    let empty = format!("sqlite://{}", desk.folder.path().join("empty").display());
    std::fs::write(desk.folder.path().join("empty"), "").unwrap();
    let other = desk.folder.path().join("other");
    desk.run_sql_on(&other, "CREATE TABLE api_keys (id VARCHAR, colour VARCHAR)");
    let other = format!("sqlite://{}", other.display());
    let gone = "postgres://operator@127.0.0.1:1/keys";
    // The cache is looked for last.
    let desk = desk.with("REDIS_URL", "redis://127.0.0.1:1");
    for command in COMMANDS {
        for (url, code, problem) in [
            ("mysql://localhost", 2, "neither sqlite: nor postgres:"),
            (gone, 3, "127.0.0.1:1"),
            ("sqlite:///no/such/folder/keys.db", 3, "cannot be opened"),
            (&empty, 1, "no table api_keys"),
            (&other, 3, "unknown schema"),
        ] {
            let answer = desk.lxk(&[&["--database-url", url], command].concat());
            assert!(
                answer.code == Some(code) && answer.err.contains(problem),
                "{command:?} on {url}: {}",
                answer.err
            );
            assert!(answer.out.is_empty(), "{command:?} on {url}: {}", answer.out);
        }
    }
    assert_eq!(std::fs::metadata(desk.folder.path().join("empty")).unwrap().len(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn without_rights_nothing_is_changed_and_the_database_says_why() {
    let options = postgres::database().await;
    let name = options.get_database().unwrap().to_owned();
    let url = |user: &str| format!("postgres://{user}@127.0.0.1:{}/{name}", options.get_port());
    let owner = Desk::without_database().with("DATABASE_URL", url("postgres"));
    owner.lxk(&["schema", "apply", "--create"]).ends_with(0);
    let (id, _) = owner.issue("user-1", "deploy");
    let pool = sqlx::PgPool::connect_with(options.clone()).await.unwrap();
    let role = "DO $$ BEGIN CREATE ROLE reader LOGIN; EXCEPTION WHEN duplicate_object THEN END $$; \
         GRANT SELECT ON ALL TABLES IN SCHEMA public TO reader";
    sqlx::raw_sql(role).execute(&pool).await.unwrap();

    let reader = Desk::without_database().with("DATABASE_URL", url("reader"));
    reader.lxk(&["show", &id]).ends_with(0).prints("deploy");
    for arguments in [
        &["revoke", &id][..],
        &["rotate", &id],
        &["issue", "--owner", "user-1", "--name", "x"],
        &["migrate", "policy", "refuse"],
    ] {
        reader.lxk(arguments).fails(3, "permission denied");
    }
    owner.lxk(&["show", &id]).prints("in force");
    owner.lxk(&["migrate", "policy"]).prints("none stored");
}

#[test]
fn a_file_that_may_not_be_written_is_read() {
    let desk = Desk::new();
    let (id, key) = desk.issue("user-1", "deploy");
    let url = format!("{}?mode=ro", desk.variables["DATABASE_URL"]);
    let desk = desk.with("DATABASE_URL", url);
    desk.lxk(&["show", &id]).ends_with(0);
    desk.reading(&["verify"], key.as_bytes()).ends_with(0);
    desk.lxk(&["revoke", &id]).fails(3, "read-only");
}

#[cfg(unix)]
#[test]
fn a_new_database_is_its_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let desk = Desk::without_database();
    let modes = || {
        let files = std::fs::read_dir(desk.folder.path()).unwrap().map(Result::unwrap);
        let mode = |file: std::fs::DirEntry| {
            (file.file_name().into_string().unwrap(), file.metadata().unwrap().permissions().mode())
        };
        files.map(mode).map(|(name, mode)| (name, mode & 0o777)).collect::<Vec<_>>()
    };
    // Under the umask that most have.
    let mut create = std::process::Command::new("sh");
    create.args(["-c", "umask 022; exec \"$0\" schema apply --create"]);
    create.arg(env!("CARGO_BIN_EXE_lxk")).env_clear().envs(&desk.variables);
    assert!(create.output().unwrap().status.success());
    let is_private = || modes().iter().all(|(_, mode)| *mode == 0o600);
    assert!(is_private(), "{:?}", modes());
    // The files beside it, while somebody works on it.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let store = SqliteStore::open(desk.path()).await.unwrap();
        store.set_owner_active(&"user-1".into(), true).await.unwrap();
        assert!(modes().len() == 3 && is_private(), "{:?}", modes());
        store.close().await;
        // One that is there keeps its mode.
        std::fs::set_permissions(desk.path(), PermissionsExt::from_mode(0o660)).unwrap();
        SqliteStore::open_or_create(desk.path()).await.unwrap().close().await;
    });
    desk.lxk(&["schema", "apply", "--create"]).ends_with(0);
    assert!(modes().contains(&("keys.db".to_owned(), 0o660)), "{:?}", modes());
}

#[cfg(unix)]
#[test]
fn no_database_comes_to_be_that_everybody_may_read() {
    use std::os::unix::fs::{PermissionsExt, symlink};
    let mode = |desk: &Desk| std::fs::metadata(desk.path()).unwrap().permissions().mode() & 0o777;
    let create = ["schema", "apply", "--create"];

    let desk = Desk::without_database();
    symlink(desk.folder.path().join("elsewhere.db"), desk.path()).unwrap();
    desk.lxk(&create).ends_with(0);
    assert_eq!(mode(&desk), 0o600, "where a link leads to");

    for (before, after) in [(0o644, 0o600), (0o664, 0o600), (0o660, 0o660)] {
        let desk = Desk::without_database();
        std::fs::write(desk.path(), "").unwrap();
        std::fs::set_permissions(desk.path(), PermissionsExt::from_mode(before)).unwrap();
        desk.lxk(&create).ends_with(0);
        assert_eq!(mode(&desk), after, "{before:o}");
    }

    let desk = Desk::without_database();
    let url = desk.variables["DATABASE_URL"].clone() + "?mode=rwc";
    let desk = desk.with("DATABASE_URL", url);
    desk.lxk(&["list"]).fails(3, "lxk schema apply --create");
    assert!(!desk.path().exists());
    desk.lxk(&create).ends_with(0);
    assert_eq!(mode(&desk), 0o600);
}
