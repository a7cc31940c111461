//! Line breaks for JSON that people read.
//!
//! A list or object stands on one line if it is an element of a list or holds no list or object itself. So a cost, a
//! stage, a program takes a line each, and a file of a thousand layers is as long as its layers are many.

/// Lays out a compact JSON text; anything else is a programmer's mistake.
pub(super) fn lay_out(compact: &str) -> String {
    let bytes = compact.as_bytes();
    let flat = flat_containers(bytes);
    let mut out = String::with_capacity(compact.len() * 2);
    let mut open: Vec<Container> = Vec::new();
    let (mut at, mut opened) = (0, 0);
    while at < bytes.len() {
        let inline = open.last().is_some_and(|container| container.inline);
        match bytes[at] {
            bracket @ (b'[' | b'{') => {
                let in_list = open.last().is_some_and(|container| container.list);
                let inline = inline || flat[opened] || in_list;
                opened += 1;
                out.push(char::from(bracket));
                open.push(Container { list: bracket == b'[', inline });
                break_line(&mut out, &open);
            }
            bracket @ (b']' | b'}') => {
                open.pop();
                match inline {
                    false => {
                        out.push('\n');
                        indent(&mut out, open.len());
                    }
                    true if out.ends_with("{ ") => out.truncate(out.len() - 1),
                    true if bracket == b'}' => out.push(' '),
                    true => {}
                }
                out.push(char::from(bracket));
            }
            b',' if inline => out.push_str(", "),
            b',' => {
                out.push(',');
                break_line(&mut out, &open);
            }
            b':' => out.push_str(": "),
            b'"' => {
                let end = string_end(bytes, at);
                out.push_str(&compact[at..end]);
                at = end;
                continue;
            }
            other => out.push(char::from(other)),
        }
        at += 1;
    }
    out.push('\n');
    out
}

struct Container {
    list: bool,
    inline: bool,
}

/// For each list and object in the order of their openings: whether it holds none itself. An empty one holds none.
fn flat_containers(bytes: &[u8]) -> Vec<bool> {
    let mut flat = Vec::new();
    let mut open: Vec<usize> = Vec::new();
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'"' => {
                at = string_end(bytes, at);
                continue;
            }
            b'[' | b'{' => {
                if let Some(parent) = open.last() {
                    flat[*parent] = false;
                }
                open.push(flat.len());
                flat.push(true);
            }
            b']' | b'}' => {
                open.pop();
            }
            _ => {}
        }
        at += 1;
    }
    flat
}

/// Index behind the closing quote of the string that opens at `at`.
fn string_end(bytes: &[u8], mut at: usize) -> usize {
    at += 1;
    while bytes[at] != b'"' {
        at += if bytes[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

fn break_line(out: &mut String, open: &[Container]) {
    match open.last() {
        Some(Container { inline: false, .. }) => {
            out.push('\n');
            indent(out, open.len());
        }
        Some(Container { list: false, .. }) => out.push(' '),
        _ => {}
    }
}

fn indent(out: &mut String, depth: usize) {
    out.extend(std::iter::repeat_n("  ", depth));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_around_what_holds_more_and_nowhere_else() {
        let compact =
            r#"{"a":1,"b":{"x":[1,2],"y":"{[,:\"\\"},"c":[{"l":[0,5],"r":{}},{"l":[]}],"d":["g0","g1"],"e":[],"f":{}}"#;
        let expected = r#"{
  "a": 1,
  "b": {
    "x": [1, 2],
    "y": "{[,:\"\\"
  },
  "c": [
    { "l": [0, 5], "r": {} },
    { "l": [] }
  ],
  "d": ["g0", "g1"],
  "e": [],
  "f": {}
}
"#;
        assert_eq!(lay_out(compact), expected);
    }

    #[test]
    fn a_layout_changes_no_value() {
        let compact = r#"{"a":[[1.5,-2e9],[{"k":null,"ü":"\u0001\n"}]],"b":true}"#;
        let laid: serde_json::Value = serde_json::from_str(&lay_out(compact)).expect("it is JSON");
        assert_eq!(laid, serde_json::from_str::<serde_json::Value>(compact).expect("it is JSON"));
    }
}
