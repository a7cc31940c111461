//! The keys that one process needs: its own pair, the key of the server it faces, and whom it lets in.
//!
//! ```text
//! DIR/server.pub         the coordinator's public key               on every machine
//! DIR/server.key         its secret                                 on the coordinator's machine
//! DIR/clients/NAME.pub   the public key of an agent or a rank       on every machine that takes connections from it
//! DIR/clients/NAME.key   its secret                                 on NAME's machine
//! ```
//!
//! One user with one shared folder may leave everything in it: every process then loads the coordinator's pair, which
//! is always let in. Otherwise each machine gets the `.pub` files and its own `.key`.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::{KeyError, KeyPair, PublicKey};

/// The name under which the coordinator's pair is loaded.
const SERVER: &str = "server";

/// An own pair, the server's public key, and the public keys that are let in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Keyring {
    own: Arc<KeyPair>,
    server: PublicKey,
    known: Arc<BTreeMap<PublicKey, String>>,
}

impl Keyring {
    /// A ring from keys that are in memory. The coordinator's key is let in besides `clients`.
    #[must_use]
    pub fn new(own: KeyPair, server: PublicKey, clients: impl IntoIterator<Item = (String, PublicKey)>) -> Self {
        let mut known: BTreeMap<_, _> = clients.into_iter().map(|(name, key)| (key, name)).collect();
        known.insert(server, SERVER.to_owned());
        Self { own: Arc::new(own), server, known: Arc::new(known) }
    }

    /// Makes the folder and a pair for the coordinator and for each name; pairs that are there stay as they are. So a
    /// further machine is added by naming it. Answers the coordinator's ring.
    ///
    /// # Errors
    /// A name cannot be a file's, and then nothing is made; or the folder cannot be written.
    pub fn create<N: AsRef<str>>(dir: &Path, names: impl IntoIterator<Item = N>) -> Result<Self, KeyError> {
        let names: Vec<N> = names.into_iter().collect();
        names.iter().try_for_each(|name| require_name(name.as_ref()))?;
        let clients = dir.join("clients");
        let folder = fs::DirBuilder::new().recursive(true).mode(0o700).create(&clients);
        folder.map_err(|source| KeyError::Write { path: clients.clone(), source })?;
        create_pair(&dir.join(SERVER))?;
        for name in names {
            create_pair(&clients.join(name.as_ref()))?;
        }
        Self::load_as(dir, SERVER)
    }

    /// Loads the folder with the pair of `name`; `server` is the coordinator.
    ///
    /// # Errors
    /// A file is missing, malformed or readable by others.
    pub fn load_as(dir: &Path, name: &str) -> Result<Self, KeyError> {
        let clients = dir.join("clients");
        let own = if name == SERVER { dir.join("server.key") } else { clients.join(format!("{name}.key")) };
        let mut known = Vec::new();
        for name in names_with(&clients, "pub")? {
            let key = PublicKey::load(&clients.join(format!("{name}.pub")))?;
            known.push((name, key));
        }
        Ok(Self::new(KeyPair::load(&own)?, PublicKey::load(&dir.join("server.pub"))?, known))
    }

    /// The same ring, for a client that faces the server of `name` instead of the coordinator: another rank.
    ///
    /// # Errors
    /// No key of that name is on the ring.
    pub fn facing(&self, name: &str) -> Result<Self, KeyError> {
        let found = self.known.iter().find(|(_, known)| known.as_str() == name);
        let (&server, _) = found.ok_or_else(|| KeyError::UnknownName { name: name.to_owned() })?;
        Ok(Self { server, ..self.clone() })
    }

    /// This process's own public key.
    #[must_use]
    pub fn public(&self) -> PublicKey {
        self.own.public
    }

    /// The key that a client expects its server to have.
    #[must_use]
    pub fn server(&self) -> PublicKey {
        self.server
    }

    /// The name behind a key that is let in; none for a stranger.
    #[must_use]
    pub fn name_of(&self, key: &PublicKey) -> Option<&str> {
        self.known.get(key).map(String::as_str)
    }

    /// Everyone who is let in.
    pub fn allowed(&self) -> impl Iterator<Item = (&str, &PublicKey)> {
        self.known.iter().map(|(key, name)| (name.as_str(), key))
    }

    pub(crate) fn own(&self) -> &KeyPair {
        &self.own
    }
}

fn require_name(name: &str) -> Result<(), KeyError> {
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    let is_good = (1..=64).contains(&name.len()) && name.bytes().all(is_plain) && !name.starts_with('.');
    if is_good && name != SERVER { Ok(()) } else { Err(KeyError::BadName { name: name.to_owned() }) }
}

/// Writes `STEM.key` and `STEM.pub`, each unless it is there.
fn create_pair(stem: &Path) -> Result<(), KeyError> {
    // Not `with_extension`: a name may hold a point.
    let path = |extension: &str| PathBuf::from(format!("{}.{extension}", stem.display()));
    let (secret, public) = (path("key"), path("pub"));
    let pair = match (secret.exists(), public.exists()) {
        (true, true) => return Ok(()),
        // A name whose secret is on its own machine, as it should be.
        (false, true) => return Ok(()),
        (true, false) => KeyPair::load(&secret)?,
        (false, false) => {
            let pair = KeyPair::generate()?;
            pair.save(&secret)?;
            pair
        }
    };
    pair.public.save(&public)
}

/// The stems of the files with that extension, in order; none where the folder is missing.
fn names_with(folder: &Path, extension: &str) -> Result<Vec<String>, KeyError> {
    let failed = |source| KeyError::Read { path: folder.to_owned(), source };
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut names = Vec::new();
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|found| found == extension)
            && let Some(name) = path.file_stem().and_then(|stem| stem.to_str())
        {
            names.push(name.to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}
