//! Keys of CURVE, their text (Z85: 40 characters for 32 bytes) and their files.
//!
//! 1. A secret is written only to a file of mode 0600 that was not there before, and read only from one that no other
//!    account can read. A key file is there as a whole or not at all.
//! 2. A secret is never part of a `Debug` text or an error.
//!
//! Left out on purpose: wiping secrets from memory (libzmq keeps copies of its own), and passphrases.

mod error;
mod keyring;
mod z85;

use std::{
    fmt, fs,
    io::{self, Write},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::Path,
    str::FromStr,
};

pub use error::{KeyError, KeyTextError};
pub use keyring::Keyring;

/// The half of a key pair that others may know.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PublicKey([u8; 32]);

impl PublicKey {
    /// The 32 bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// From the 32 bytes, as a handshake brings them.
    #[must_use]
    pub fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Reads a `.pub` file: the Z85 text and a line end.
    ///
    /// # Errors
    /// The file cannot be read or holds no key.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let text = read(path)?;
        text.trim_end().parse().map_err(|source| KeyError::Text { path: path.to_owned(), source })
    }

    /// Writes a `.pub` file, which must not exist yet.
    ///
    /// # Errors
    /// The file exists or cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        write(path, 0o644, &format!("{self}\n"))
    }
}

impl FromStr for PublicKey {
    type Err = KeyTextError;

    fn from_str(text: &str) -> Result<Self, KeyTextError> {
        z85::decode(text).map(Self)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&z85::encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

/// A public key and its secret.
#[derive(Clone)]
pub struct KeyPair {
    /// What others know this end by.
    pub public: PublicKey,
    secret: [u8; 32],
}

impl KeyPair {
    /// Makes a new pair from the system's randomness.
    ///
    /// # Errors
    /// The libzmq that is linked in has no CURVE.
    pub fn generate() -> Result<Self, KeyError> {
        let pair = zmq::CurveKeyPair::new().map_err(|error| KeyError::Generate { source: error.into() })?;
        Ok(Self { public: PublicKey(pair.public_key), secret: pair.secret_key })
    }

    /// Writes a `.key` file, mode 0600, which must not exist yet: `public` and `secret`, each with its Z85 text.
    ///
    /// # Errors
    /// The file exists or cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), KeyError> {
        write(path, 0o600, &format!("public {}\nsecret {}\n", self.public, z85::encode(&self.secret)))
    }

    /// Reads a `.key` file.
    ///
    /// # Errors
    /// The file cannot be read, others can read it too, or it does not hold a pair.
    pub fn load(path: &Path) -> Result<Self, KeyError> {
        let text = read(path)?;
        let mode = fs::metadata(path).map_err(|source| KeyError::Read { path: path.to_owned(), source })?.mode();
        if mode & 0o077 != 0 {
            return Err(KeyError::Exposed { path: path.to_owned(), mode: mode & 0o777 });
        }
        let wrong = |source| KeyError::Text { path: path.to_owned(), source };
        let mut lines = text.lines();
        let (Some(public), Some(secret), None) = (
            lines.next().and_then(|line| line.strip_prefix("public ")),
            lines.next().and_then(|line| line.strip_prefix("secret ")),
            lines.next(),
        ) else {
            return Err(KeyError::Shape { path: path.to_owned() });
        };
        Ok(Self { public: public.parse().map_err(wrong)?, secret: z85::decode(secret).map_err(wrong)? })
    }

    pub(crate) fn secret(&self) -> &[u8; 32] {
        &self.secret
    }
}

impl fmt::Debug for KeyPair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("KeyPair").field("public", &self.public).finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<String, KeyError> {
    fs::read_to_string(path).map_err(|source| KeyError::Read { path: path.to_owned(), source })
}

fn write(path: &Path, mode: u32, text: &str) -> Result<(), KeyError> {
    let written: io::Result<()> = (|| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let mut file = tempfile::Builder::new().permissions(fs::Permissions::from_mode(mode)).tempfile_in(folder)?;
        file.as_file_mut().write_all(text.as_bytes())?;
        file.as_file().sync_all()?;
        file.persist_noclobber(path)?;
        Ok(())
    })();
    written.map_err(|source| KeyError::Write { path: path.to_owned(), source })
}
