//! A process in which stand-ins are the drivers.

use crate::script::{Script, VARIABLE};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Set in the process that a test runs alone in.
const TEST: &str = "ADAPTIS_STANDIN_TEST";
/// Such a process takes seconds; one that takes longer hangs.
const PATIENCE: Duration = Duration::from_secs(120);

/// A library that has a stand-in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Library {
    /// The CUDA driver.
    Cuda,
    /// The management library.
    Nvml,
    /// cuBLAS.
    Cublas,
}

impl Library {
    /// What Cargo calls the stand-in.
    fn built(self) -> &'static str {
        match self {
            Library::Cuda => "libadaptis_standin_cuda.so",
            Library::Nvml => "libadaptis_standin_nvml.so",
            Library::Cublas => "libadaptis_standin_cublas.so",
        }
    }

    /// What loaders look for.
    fn names(self) -> &'static [&'static str] {
        match self {
            Library::Cuda => &["libcuda.so.1", "libcuda.so"],
            Library::Nvml => &["libnvidia-ml.so.1"],
            Library::Cublas => &["libcublas.so"],
        }
    }
}

/// Which stand-ins a process has, what they lack and what they answer.
#[derive(Clone, Debug)]
pub struct Stage {
    libraries: Vec<Library>,
    missing: Vec<(Library, &'static str)>,
    script: String,
}

impl Stage {
    /// With some of the libraries.
    pub fn with(libraries: &[Library]) -> Self {
        Self { libraries: libraries.to_vec(), missing: Vec::new(), script: String::new() }
    }

    /// A driver that lacks a function.
    #[must_use]
    pub fn lacking(mut self, library: Library, function: &'static str) -> Self {
        self.missing.push((library, function));
        self
    }

    /// What the stand-ins answer at first.
    #[must_use]
    pub fn script(mut self, text: &str) -> Self {
        self.script.push_str(text);
        self.script.push('\n');
        self
    }

    /// Runs a test of the calling binary in a process of its own on this stage. There it is `Some` of the script's path;
    /// here it is `None` once that process has passed.
    ///
    /// # Panics
    /// If the process fails, with what it said.
    pub fn alone(&self, test: &str) -> Option<PathBuf> {
        if std::env::var_os(TEST).is_some() {
            return crate::script_path();
        }
        let exe = std::env::current_exe().expect("a test knows its own binary");
        let mut command = Command::new(exe);
        command.args(["--exact", test, "--nocapture", "--test-threads=1"]).env(TEST, test);
        let (passed, said) = self.run(&mut command);
        let ran = said.contains("1 passed");
        assert!(passed && ran, "{test}, alone on a stage (is that the test's full name?):\n{said}");
        print!("{said}");
        None
    }

    /// Runs a command on this stage: whether it succeeded, and all that it said.
    ///
    /// # Panics
    /// If the stand-ins are not built, the stage cannot be set up, or the command hangs.
    pub fn run(&self, command: &mut Command) -> (bool, String) {
        let folder = Folder::make();
        self.set_up(&folder.0);
        let script = folder.0.join("script");
        Script::write(&script, &self.script).expect("a script can be written");
        let mut path = folder.0.clone().into_os_string();
        if let Some(old) = std::env::var_os("LD_LIBRARY_PATH") {
            path.push(":");
            path.push(old);
        }
        command.env("LD_LIBRARY_PATH", path).env(VARIABLE, &script);
        command.env("XDG_RUNTIME_DIR", &folder.0);
        let log = folder.0.join("log");
        let output = std::fs::File::create(&log).expect("a log can be written");
        let error = output.try_clone().expect("a descriptor is left");
        let mut child = command.stdin(Stdio::null()).stdout(output).stderr(error).spawn().expect("a process starts");
        let passed = wait(&mut child);
        let mut said = String::new();
        let read = std::fs::File::open(&log).and_then(|mut file| file.read_to_string(&mut said));
        read.expect("the log can be read");
        (passed, said)
    }

    fn set_up(&self, folder: &Path) {
        for library in &self.libraries {
            let mut bytes = std::fs::read(find(library.built())).expect("a stand-in can be read");
            for (_, function) in self.missing.iter().filter(|(of, _)| of == library) {
                strike(&mut bytes, function);
            }
            let [first, others @ ..] = library.names() else { unreachable!("every library has a name") };
            std::fs::write(folder.join(first), bytes).expect("a stand-in can be copied");
            for name in others {
                std::os::unix::fs::symlink(first, folder.join(name)).expect("a name can be linked");
            }
        }
    }
}

/// Where Cargo put a stand-in: beside the test, or in the folder of dependencies beside the examples.
fn find(built: &str) -> PathBuf {
    let exe = std::env::current_exe().expect("a process knows its own binary");
    let folder = exe.parent().expect("a binary lies in a folder");
    [folder.join(built), folder.join("../deps").join(built), folder.join("deps").join(built)]
        .into_iter()
        .find(|path| path.exists())
        .unwrap_or_else(|| panic!("{built} is not built: it must be a dev-dependency of {}", exe.display()))
}

/// Makes a name in a library one that nobody looks for.
fn strike(bytes: &mut [u8], function: &str) {
    let name: Vec<u8> = [b"\0", function.as_bytes(), b"\0"].concat();
    let places: Vec<usize> = (0..=bytes.len() - name.len()).filter(|at| bytes[*at..].starts_with(&name)).collect();
    assert!(!places.is_empty(), "the stand-in has no {function} to lack");
    for at in places {
        bytes[at + 1] = b'_';
    }
}

fn wait(child: &mut Child) -> bool {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait().expect("a child can be waited for") {
            return status.success();
        }
        if Instant::now() >= end {
            child.kill().expect("a child can be killed");
            child.wait().expect("a child can be waited for");
            return false;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A folder of its own, gone with the stage.
struct Folder(PathBuf);

impl Folder {
    fn make() -> Self {
        static MADE: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let number = MADE.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("adaptis-standin-{}-{number}", std::process::id()));
        // Of a process of the same number, long gone.
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder can be made");
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
