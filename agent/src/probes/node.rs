//! One poller a node: the agents of a host share what one of them reads.
//!
//! ```text
//!   agent A --holds--> gpus.lock       agents B, C: look at gpus.readings, and try the lock each time
//!   agent A --writes-> gpus.readings   A dies: the system lets go of the lock, and B or C takes it at its next look
//! ```
//!
//! 1. Who holds the lock reads for all; who does not reads nothing but the file. A holder that hangs in the driver keeps
//!    the lock, so that nobody else hangs with it; what it wrote grows stale and is not believed.
//! 2. Readings are found by the card's UUID, since its index depends on what a process may see. A card that is not among
//!    them is the agent's own to read.
//! 3. The folder is the user's own. Anything else there, and the agent reads for itself alone.

use super::Readings;
use super::nvml::CardReadings;
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const FORMAT: &str = "adaptis.gpus/1";
/// Far more than the readings of sixteen cards; a longer file is not ours.
const FILE_BYTES_MAX: u64 = 256 << 10;

/// What the poller of the node wrote.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Snapshot {
    /// On the host's monotonic clock.
    pub at_ns: u64,
    pub cards: Vec<CardReadings>,
}

impl Snapshot {
    pub fn of(&self, uuid: &str) -> Option<&CardReadings> {
        self.cards.iter().find(|card| card.uuid == uuid)
    }
}

/// The place where agents of a host meet.
#[derive(Debug)]
pub(crate) struct Node {
    folder: PathBuf,
    lock: Option<File>,
}

impl Node {
    /// In the user's runtime folder, else in shared memory. None where there is no such place of ours, which is logged.
    pub fn open() -> Option<Self> {
        // SAFETY: has no preconditions.
        let user = unsafe { libc::geteuid() };
        let folder = match std::env::var_os("XDG_RUNTIME_DIR") {
            Some(runtime) if !runtime.is_empty() => PathBuf::from(runtime).join("adaptis"),
            _ => PathBuf::from(format!("/dev/shm/adaptis-{user}")),
        };
        Self::at(folder, user)
    }

    /// In a folder that is known to be ours.
    #[cfg(test)]
    pub fn in_folder(folder: &Path) -> Self {
        Self { folder: folder.to_owned(), lock: None }
    }

    fn at(folder: PathBuf, user: u32) -> Option<Self> {
        // That it is there already is no error.
        let _ = std::fs::DirBuilder::new().mode(0o700).create(&folder);
        let found = std::fs::symlink_metadata(&folder);
        let is_ours = found.is_ok_and(|found| found.is_dir() && found.uid() == user && found.mode() & 0o022 == 0);
        if !is_ours {
            tracing::info!(folder = %folder.display(), "no folder of ours to share readings in; reading alone");
        }
        is_ours.then_some(Self { folder, lock: None })
    }

    /// Whether this agent reads for all. Once it does it goes on, for as long as it lives.
    pub fn leads(&mut self) -> bool {
        if self.lock.is_none() {
            self.lock = self.lock("gpus.lock");
        }
        self.lock.is_some()
    }

    /// Takes a lock of the host, if nobody has it; it is held until the file is dropped.
    pub fn lock(&self, name: &str) -> Option<File> {
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true).mode(0o600).custom_flags(libc::O_NOFOLLOW);
        options.open(self.folder.join(name)).ok().filter(|file| file.try_lock().is_ok())
    }

    /// Puts readings where the others find them, whole.
    pub fn publish(&self, snapshot: &Snapshot) -> std::io::Result<()> {
        let new = self.folder.join("gpus.new");
        // Of a holder that was killed.
        let _ = std::fs::remove_file(&new);
        let mut options = OpenOptions::new();
        let mut file = options.create_new(true).write(true).mode(0o600).open(&new)?;
        std::io::Write::write_all(&mut file, text(snapshot).as_bytes())?;
        std::fs::rename(&new, self.readings_path())
    }

    /// What the poller of the node wrote last.
    pub fn read(&self) -> Option<Snapshot> {
        read(&self.readings_path())
    }

    fn readings_path(&self) -> PathBuf {
        self.folder.join("gpus.readings")
    }
}

fn read(path: &Path) -> Option<Snapshot> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK).open(path).ok()?;
    if !file.metadata().ok()?.is_file() {
        return None;
    }
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).ok()?;
    if text.len() as u64 > FILE_BYTES_MAX { None } else { parse(&text) }
}

fn text(snapshot: &Snapshot) -> String {
    let mut text = format!("{FORMAT} {}\n", snapshot.at_ns);
    for card in &snapshot.cards {
        text.push_str(&format!("card {}\n", card.uuid));
        for (name, value) in &card.readings {
            text.push_str(&format!("{name} {value}\n"));
        }
    }
    text.push_str("end\n");
    text
}

fn parse(text: &str) -> Option<Snapshot> {
    let mut lines = text.strip_suffix("end\n")?.lines();
    let at_ns = lines.next()?.strip_prefix(FORMAT)?.trim().parse().ok()?;
    let mut cards: Vec<CardReadings> = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(' ')?;
        if name == "card" {
            cards.push(CardReadings { uuid: value.to_owned(), readings: Readings::new() });
        } else {
            let value: f64 = value.parse().ok().filter(|value: &f64| value.is_finite())?;
            cards.last_mut()?.readings.push((name.to_owned(), value));
        }
    }
    Some(Snapshot { at_ns, cards })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_readings_come_back_and_any_text_is_read_without_harm(
            at_ns in any::<u64>(),
            cards in prop::collection::vec(("GPU-[0-9a-f-]{1,36}", prop::collection::vec(("[a-z_]{5,40}", -1e300..1e300), 0..20)), 0..4),
            noise in "[a-z0-9/ .\\n-]{0,200}",
            cut in any::<prop::sample::Index>(),
        ) {
            let cards = cards.into_iter().map(|(uuid, readings)| CardReadings { uuid, readings }).collect();
            let snapshot = Snapshot { at_ns, cards };
            let whole = text(&snapshot);
            prop_assert_eq!(parse(&whole), Some(snapshot));
            let mut spoilt = whole.clone();
            spoilt.insert_str(cut.index(whole.len()), &noise);
            for text in [noise, spoilt] {
                if let Some(read) = parse(&text) {
                    let is_plain = |card: &CardReadings| card.readings.iter().all(|(_, value)| value.is_finite());
                    prop_assert!(read.cards.iter().all(is_plain));
                }
            }
        }
    }

    fn snapshot() -> Snapshot {
        let readings = |power| vec![("power_w".to_owned(), power), ("sm_clock_mhz".to_owned(), 1980.0)];
        let card = |uuid: &str, power| CardReadings { uuid: uuid.to_owned(), readings: readings(power) };
        Snapshot { at_ns: 7, cards: vec![card("GPU-a", 0.1 + 0.2), card("GPU-b", 1e-9)] }
    }

    fn node(folder: &Path) -> Node {
        // SAFETY: has no preconditions.
        Node::at(folder.join("adaptis"), unsafe { libc::geteuid() }).unwrap()
    }

    #[test]
    fn readings_come_back_as_they_were() {
        let folder = tempfile::tempdir().unwrap();
        let node = node(folder.path());
        assert_eq!(node.read(), None);
        node.publish(&snapshot()).unwrap();
        assert_eq!(node.read(), Some(snapshot()));
        assert_eq!(snapshot().of("GPU-b").unwrap().readings[0].1, 1e-9);
        assert_eq!(snapshot().of("GPU-c"), None);
    }

    #[test]
    fn what_is_not_whole_or_not_ours_is_not_read() {
        let whole = text(&snapshot());
        assert_eq!(parse(&whole), Some(snapshot()));
        for cut in 0..whole.len() {
            assert_eq!(parse(&whole[..cut]), None, "{cut}");
        }
        for wrong in
            ["adaptis.gpus/2 7\nend\n", "adaptis.gpus/1 7\npower_w 1\nend\n", "adaptis.gpus/1 7\ncard a\nx nan\nend\n"]
        {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn one_leads_and_its_end_hands_the_lead_on() {
        let folder = tempfile::tempdir().unwrap();
        let (mut first, mut second) = (node(folder.path()), node(folder.path()));
        assert!(first.leads() && first.leads() && !second.leads());
        drop(first);
        assert!(second.leads());
    }

    const HELD: &str = "ADAPTIS_TEST_NODE";

    /// A process that leads until it is killed; nothing where nobody asks for one.
    #[test]
    fn holder_process() {
        let Some(folder) = std::env::var_os(HELD).map(PathBuf::from) else { return };
        let mut node = node(&folder);
        assert!(node.leads());
        std::fs::write(folder.join("leads"), "").unwrap();
        std::thread::sleep(std::time::Duration::from_secs(60));
    }

    #[test]
    fn a_killed_holder_hands_the_lead_on() {
        let folder = tempfile::tempdir().unwrap();
        let mut command = std::process::Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", "probes::node::tests::holder_process"]).env(HELD, folder.path());
        let mut holder = command.stdout(std::process::Stdio::null()).spawn().unwrap();
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        while !folder.path().join("leads").exists() {
            assert!(std::time::Instant::now() < end, "the holder never led");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        let mut follower = node(folder.path());
        assert!(!follower.leads());
        holder.kill().unwrap();
        holder.wait().unwrap();
        assert!(follower.leads());
    }

    #[test]
    fn a_folder_that_is_not_ours_is_left_alone() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        // SAFETY: has no preconditions.
        let user = unsafe { libc::geteuid() };
        let open = folder.path().join("open");
        std::fs::create_dir(&open).unwrap();
        std::fs::set_permissions(&open, std::fs::Permissions::from_mode(0o777)).unwrap();
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path(), &link).unwrap();
        for place in [open, link, folder.path().join("none/none")] {
            assert!(Node::at(place.clone(), user).is_none(), "{}", place.display());
        }
        assert!(Node::at(folder.path().join("adaptis"), user + 1).is_none());
    }
}
