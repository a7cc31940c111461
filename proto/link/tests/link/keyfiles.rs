//! Key files and the folder of keys.

use std::{
    fs,
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
};

use adaptis_link::keys::{KeyError, KeyPair, Keyring, PublicKey};

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().mode() & 0o777
}

#[test]
fn a_pair_survives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.key");
    let pair = KeyPair::generate().unwrap();
    pair.save(&path).unwrap();
    assert_eq!(mode(&path), 0o600);
    assert_eq!(KeyPair::load(&path).unwrap().public, pair.public);
    let text = pair.public.to_string();
    assert_eq!((text.len(), text.parse::<PublicKey>().unwrap()), (40, pair.public));
    assert!(matches!(pair.save(&path), Err(KeyError::Write { .. })), "a key is never overwritten");
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    let secret = fs::read_to_string(&path).unwrap().lines().nth(1).unwrap()[7..].to_owned();
    assert!(!format!("{pair:?}").contains(&secret));
}

#[test]
fn an_exposed_or_broken_secret_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.key");
    let pair = KeyPair::generate().unwrap();
    pair.save(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644)).unwrap();
    let error = KeyPair::load(&path).unwrap_err();
    assert!(matches!(error, KeyError::Exposed { mode: 0o644, .. }));
    assert!(error.to_string().contains("chmod 600"), "{error}");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
    let text = fs::read_to_string(&path).unwrap();
    for (broken, is_shape) in [
        (String::new(), true),
        (text.replace("secret", "sekret"), true),
        (format!("{text}more\n"), true),
        (text.replace("secret ", "secret ,"), false),
    ] {
        fs::write(&path, broken).unwrap();
        match KeyPair::load(&path).unwrap_err() {
            KeyError::Shape { .. } => assert!(is_shape),
            KeyError::Text { .. } => assert!(!is_shape),
            other => panic!("{other:?}"),
        }
    }
    assert!(matches!(KeyPair::load(&folder.path().join("absent")), Err(KeyError::Read { .. })));
}

#[test]
fn a_folder_for_a_cluster() {
    let folder = tempfile::tempdir().unwrap();
    let dir = folder.path().join("keys");
    let made = Keyring::create(&dir, ["node-a", "node.b"]).unwrap();
    assert_eq!(mode(&dir), 0o700);
    assert_eq!(mode(&dir.join("server.key")), 0o600);
    assert_eq!(mode(&dir.join("clients/node.b.key")), 0o600);
    assert_eq!(made.public(), made.server());
    let loaded = Keyring::load_as(&dir, "server").unwrap();
    assert_eq!(loaded.public(), made.public());
    let names: Vec<_> = loaded.allowed().map(|(name, _)| name.to_owned()).collect();
    assert_eq!(names.len(), 3);
    let node = Keyring::load_as(&dir, "node.b").unwrap();
    assert_eq!(node.server(), made.public());
    assert_eq!(loaded.name_of(&node.public()), Some("node.b"));
    assert_eq!(node.facing("node-a").unwrap().server(), Keyring::load_as(&dir, "node-a").unwrap().public());
    assert!(matches!(node.facing("node-z"), Err(KeyError::UnknownName { .. })));

    // A further machine joins; the keys of the others stay.
    let grown = Keyring::create(&dir, ["node-a", "node-c"]).unwrap();
    assert_eq!(grown.public(), made.public());
    assert_eq!(grown.name_of(&node.public()), Some("node.b"));
    assert_eq!(grown.allowed().count(), 4);
}

#[test]
fn a_machine_with_its_own_secret_only() {
    let folder = tempfile::tempdir().unwrap();
    Keyring::create(folder.path(), ["a", "b"]).unwrap();
    fs::remove_file(folder.path().join("server.key")).unwrap();
    fs::remove_file(folder.path().join("clients/a.key")).unwrap();
    let ring = Keyring::load_as(folder.path(), "b").unwrap();
    assert_eq!(ring.name_of(&ring.public()), Some("b"));
    assert!(matches!(Keyring::load_as(folder.path(), "a"), Err(KeyError::Read { .. })));
}

#[test]
fn names_that_could_leave_the_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["", ".", "..", "../x", "a/b", ".hidden", "server", "a b", &"x".repeat(65)] {
        let dir = folder.path().join("keys");
        assert!(matches!(Keyring::create(&dir, ["good", name]), Err(KeyError::BadName { .. })), "{name}");
        assert!(!dir.exists(), "nothing is made where one name is bad");
    }
}
