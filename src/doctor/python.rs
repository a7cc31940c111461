//! The Python and PyTorch that a training script would find.

use super::Finding;
use super::Verdict::{self, Fine, Fix, Note};
use std::io::{Read, Seek};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ABOUT: &str = "python";
/// The PyTorch that all is checked against.
const TORCH_TESTED: &str = "2.15";
/// The program that is asked if none is named.
pub(super) const PYTHON: &str = "python3";
/// The oldest one that the package takes.
const TORCH_OLDEST: (u32, u32) = (2, 12);
/// The oldest Python that the package takes.
const PYTHON_OLDEST: (u32, u32) = (3, 10);
/// Says what there is, a line each; the import of torch, which takes longest, comes last.
const SCRIPT: &str = "
import importlib.util, sys
print('python %d.%d.%d' % sys.version_info[:3], flush=True)
print('adaptis', getattr(importlib.util.find_spec('adaptis'), 'origin', None) is not None, flush=True)
if importlib.util.find_spec('torch') is None:
    print('torch none')
else:
    try:
        import torch
        print('torch', torch.__version__)
    except Exception as error:
        print('failed', type(error).__name__, *str(error).split())
";
const SAID_BYTES_MAX: u64 = 64 << 10;

pub(super) fn look(program: &Path, patience: Duration) -> Finding {
    let name = program.display();
    let (verdict, text) = match said(program, patience) {
        Ok(Some((said, is_over))) => judged(&name.to_string(), &said, is_over, patience),
        Ok(None) if program == Path::new(PYTHON) => {
            (Fine, format!("no {name} on PATH: needed where PyTorch trains only; --python names another"))
        }
        Ok(None) => (Fix, format!("--python {name}: there is no such program")),
        Err(error) => (Note, format!("{name} can't be asked: {error}")),
    };
    Finding::new(ABOUT, verdict, text)
}

/// What the script printed, and whether it ended in time; none where there is no such program.
fn said(program: &Path, patience: Duration) -> std::io::Result<Option<(String, bool)>> {
    // A file and not a pipe: whoever it leaves behind could keep that open.
    let mut out = tempfile::tempfile()?;
    let mut python = Command::new(program);
    python.args(["-c", SCRIPT]).stdin(Stdio::null()).stdout(out.try_clone()?).stderr(Stdio::null());
    let mut child = match python.spawn() {
        Ok(child) => child,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let end = Instant::now() + patience;
    let is_over = loop {
        if child.try_wait()?.is_some() {
            break true;
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            break false;
        }
        std::thread::sleep(Duration::from_millis(10));
    };
    let mut said = Vec::new();
    out.rewind()?;
    out.take(SAID_BYTES_MAX).read_to_end(&mut said)?;
    Ok(Some((String::from_utf8_lossy(&said).into_owned(), is_over)))
}

fn judged(name: &str, said: &str, is_over: bool, patience: Duration) -> (Verdict, String) {
    let word = |key: &str| said.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix(' '));
    let Some(python) = word("python") else {
        return match is_over {
            true => (Note, format!("{name} runs and does not say its version: is it Python?")),
            false => (Note, format!("{name} says nothing within {} s", patience.as_secs_f64())),
        };
    };
    let package = match word("adaptis") {
        Some("True") => "with the package adaptis",
        _ => "without the package adaptis (`pip install ./executor/python`)",
    };
    if let Some(why) = word("failed") {
        return (Fix, format!("{python}; `import torch` fails: {why}: install it anew"));
    }
    let Some(torch) = word("torch") else {
        return match is_over {
            true => (Fix, format!("{python}; it dies on `import torch`: install torch anew")),
            false => (Note, format!("{python}; `import torch` takes more than {} s", patience.as_secs_f64())),
        };
    };
    if torch == "none" {
        return (Fine, format!("{python} without torch: needed where PyTorch trains only"));
    }
    let text = format!("{python}, torch {torch}, {package}");
    // Without the package it may be meant for something else.
    let too_old = if word("adaptis") == Some("True") { Fix } else { Note };
    match (version(python), version(torch)) {
        (Some(found), _) if found < PYTHON_OLDEST => {
            let (major, minor) = PYTHON_OLDEST;
            let fix = "name another one by --python, or make an environment of it";
            (too_old, format!("{text}: the package needs Python {major}.{minor} or newer: {fix}"))
        }
        (_, Some(found)) if found < TORCH_OLDEST => {
            let (major, minor) = TORCH_OLDEST;
            let fix = format!("pip install 'torch=={TORCH_TESTED}.*'");
            (too_old, format!("{text}: the package needs torch {major}.{minor} or newer: {fix}"))
        }
        _ if torch.starts_with(&format!("{TORCH_TESTED}.")) => (Fine, text),
        _ => (Note, format!("{text}: not tested, {TORCH_TESTED} is")),
    }
}

fn version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.').map(|part| part.parse().ok());
    Some((parts.next()??, parts.next()??))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_python_says_decides() {
        let (newest, patience) = ("python 3.11.7\nadaptis True\ntorch 2.15.0+cu132\n", Duration::from_secs(60));
        for (said, is_over, verdict, word) in [
            (newest, true, Fine, "torch 2.15.0+cu132, with the package"),
            ("python 3.11.7\nadaptis False\ntorch 2.15.0\n", true, Fine, "without the package"),
            ("python 3.11.7\nadaptis False\ntorch none\n", true, Fine, "without torch"),
            ("python 3.11.7\nadaptis True\ntorch 2.150.0\n", true, Note, "not tested"),
            ("python 3.11.7\nadaptis True\ntorch 2.14.1\n", true, Note, "not tested, 2.15 is"),
            ("python 3.11.7\nadaptis True\ntorch 2.9.1\n", true, Fix, "pip install 'torch==2.15.*'"),
            ("python 3.9.2\nadaptis True\ntorch 2.15.0\n", true, Fix, "Python 3.10 or newer"),
            ("python 3.11.7\nadaptis True\nfailed OSError libcublas\n", true, Fix, "OSError libcublas"),
            ("python 3.11.7\nadaptis True\n", true, Fix, "dies"),
            ("python 3.11.7\nadaptis True\n", false, Note, "takes more than 60 s"),
            ("", false, Note, "nothing within"),
            ("", true, Note, "is it Python?"),
        ] {
            let found = judged("python3", said, is_over, patience);
            assert_eq!(found.0, verdict, "{said}: {found:?}");
            assert!(found.1.contains(word), "{said}: {found:?}");
        }
    }
}
