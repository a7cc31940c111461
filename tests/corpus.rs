//! Every parser of ours, over files that people would write and files that are easily misread. `fuzz/` runs the
//! same functions on whatever libFuzzer makes up.

#[path = "../fuzz/parsers.rs"]
mod parsers;

use std::path::Path;

type Parser = fn(&[u8]);

const PARSERS: [(&str, Parser); 13] = [
    ("problem", parsers::problem),
    ("planner", parsers::planner),
    ("plan", parsers::plan),
    ("emulation", parsers::emulation),
    ("devices", parsers::devices),
    ("fault", parsers::fault),
    ("duration", parsers::duration),
    ("wire", parsers::wire),
    ("record", parsers::record),
    ("ring", parsers::ring),
    ("profiles", parsers::profiles),
    ("cells", parsers::cells),
    ("trace", parsers::trace),
];

fn files(parser: &str) -> Vec<(String, Vec<u8>)> {
    // What plans reads the same problems.
    let parser = if parser == "planner" { "problem" } else { parser };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/corpus").join(parser);
    let entries = std::fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let paths = entries.map(|entry| entry.expect("a readable folder").path());
    paths.map(|path| (path.display().to_string(), std::fs::read(&path).expect("a readable file"))).collect()
}

#[test]
fn every_file_of_the_corpus_is_read_or_refused() {
    for (name, parser) in PARSERS {
        let files = files(name);
        assert!(files.len() >= 3, "{name}: {} files", files.len());
        for (path, bytes) in files {
            // Told by name, should it panic.
            println!("{path}");
            parser(&bytes);
        }
    }
}

#[test]
fn files_cut_short_or_with_a_bit_turned_are_read_or_refused() {
    const CUTS: usize = 40;
    for (name, parser) in PARSERS {
        for (path, bytes) in files(name) {
            println!("{path}");
            for step in 0..CUTS {
                let at = bytes.len() * step / CUTS;
                parser(&bytes[..at]);
                let mut turned = bytes.clone();
                if let Some(byte) = turned.get_mut(at) {
                    *byte ^= 1 << (step % 8);
                }
                parser(&turned);
            }
        }
    }
}
