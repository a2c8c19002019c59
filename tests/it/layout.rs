//! The rooms of the crate, in order: what each file imports comes from its own room or from one above, and no two files
//! import each other, not by way of others either.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The rooms, each using only those before it.
const ROOMS: &[&str] = &[
    "error", "util", "http", "values", "report", "session", "store", "update", "client", "batch",
    "forward", "testing", "capi", "cli",
];
/// What may also be named by the crate's root: these rooms use the library as a caller does.
const CALLERS: &[&str] = &["batch", "capi", "cli", "forward", "testing"];

/// The production code of each file, by its module path, such as `session::auth` or `session` for `session/mod.rs`.
type Sources = BTreeMap<String, String>;

/// A file's code without its comments and its tests.
fn code(text: &str) -> String {
    let end = [
        "#[cfg(test)]\nmod ",
        "#[cfg(test)]\npub(crate) mod ",
        "#[cfg(test)]\n#[path",
    ]
    .iter()
    .filter_map(|mark| text.find(mark))
    .min();
    let lines = text[..end.unwrap_or(text.len())].lines();
    let code = lines.filter(|line| !line.trim_start().starts_with("//"));
    code.collect::<Vec<_>>().join("\n")
}

fn sources(folder: &Path, module: &str, found: &mut Sources) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let inside = |name: &str| match module {
            "" => name.to_owned(),
            _ => format!("{module}::{name}"),
        };
        if path.is_dir() {
            sources(&path, &inside(&stem), found);
        } else if path.extension().is_some_and(|ext| ext == "rs") && !stem.ends_with("_tests") {
            let name = if stem == "mod" {
                module.to_owned()
            } else {
                inside(&stem)
            };
            found.insert(name, code(&std::fs::read_to_string(&path).unwrap()));
        }
    }
}

/// The paths behind `prefix` in code, as far as they are lower case: modules and functions.
fn paths<'a>(code: &'a str, prefix: &'a str) -> impl Iterator<Item = &'a str> {
    code.split(prefix).skip(1).map(|rest| {
        let end = rest
            .find(|c: char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c)));
        let path = &rest[..end.unwrap_or(rest.len())];
        // `crate::Client` has no lower case: its first letter says what it is.
        if path.is_empty() { &rest[..1] } else { path }
    })
}

/// The file that a path leads into: the longest beginning that is one.
fn file(path: &str, files: &Sources) -> Option<String> {
    let words: Vec<&str> = path.split("::").filter(|word| !word.is_empty()).collect();
    (1..=words.len())
        .rev()
        .map(|n| words[..n].join("::"))
        .find(|name| files.contains_key(name))
}

/// What each file imports of the others. The program's own files begin at `super::` or `crate::cli::`.
fn imports(files: &Sources) -> BTreeMap<String, BTreeSet<String>> {
    let of = |(name, code): (&String, &String)| {
        let mut targets = BTreeSet::new();
        for path in paths(code, "crate::") {
            targets.extend(file(path, files));
        }
        // `super` of a room's mod.rs is the root.
        if let Some((parent, _)) = name.rsplit_once("::") {
            for path in paths(code, "super::") {
                targets.extend(file(&format!("{parent}::{path}"), files));
            }
        }
        targets.remove(name);
        (name.clone(), targets)
    };
    files.iter().map(of).collect()
}

fn room(name: &str) -> &str {
    name.split("::").next().unwrap_or(name)
}

/// Imports of a later room, and names of the crate's root, which could hide one.
fn backward(files: &Sources) -> Vec<String> {
    let place = |name: &str| ROOMS.iter().position(|room| *room == name);
    let mut found = Vec::new();
    for (name, targets) in imports(files) {
        let Some(own) = place(room(&name)) else {
            found.push(format!("{name} is in no room"));
            continue;
        };
        for target in targets {
            if place(room(&target)).is_none_or(|place| place > own) {
                found.push(format!("{name} imports {target}"));
            }
        }
        let of_root = paths(&files[&name], "crate::")
            .any(|path| path.chars().all(|c| c.is_ascii_uppercase()));
        if of_root && !CALLERS.contains(&room(&name)) {
            found.push(format!("{name} imports a name of the root"));
        }
    }
    found
}

/// The files that take part in a cycle of imports: what is left when those without imports are taken away again and
/// again, and those that nothing imports.
fn cycles(files: &Sources) -> Vec<String> {
    let mut left = imports(files);
    loop {
        let before = left.len();
        let imported: BTreeSet<String> = left.values().flatten().cloned().collect();
        left.retain(|name, targets| !targets.is_empty() && imported.contains(name));
        let names: BTreeSet<String> = left.keys().cloned().collect();
        left.values_mut()
            .for_each(|targets| targets.retain(|target| names.contains(target)));
        if left.len() == before {
            break;
        }
    }
    let line = |(name, targets): (&String, &BTreeSet<String>)| format!("{name} -> {targets:?}");
    left.iter().map(line).collect()
}

fn of_library() -> Sources {
    let mut files = Sources::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    sources(&src, "", &mut files);
    // The root declares and re-exports; the documentation is text.
    files.retain(|name, _| !matches!(room(name), "lib" | "main" | "documentation"));
    files
}

fn made(files: &[(&str, &str)]) -> Sources {
    let own = |(name, text): &(&str, &str)| ((*name).to_owned(), code(text));
    files.iter().map(own).collect()
}

#[test]
fn layout_rooms_import_only_from_those_before_them() {
    let files = of_library();
    assert!(files.len() > 60, "{}", files.len());
    let found = backward(&files);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn layout_no_cycle_of_files() {
    let found = cycles(&of_library());
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn layout_import_of_a_later_room_is_found() {
    let late = made(&[("error", "use crate::client::Client;\n"), ("client", "")]);
    assert_eq!(backward(&late), ["error imports client"]);
    let of_root = made(&[("error", "fn f(_: crate::Client) {}\n")]);
    assert_eq!(backward(&of_root), ["error imports a name of the root"]);
    let comment = made(&[
        (
            "http",
            "/// [`Client`](crate::Client)\nuse crate::error::clip;\n",
        ),
        ("error", ""),
    ]);
    assert!(backward(&comment).is_empty());
    assert_eq!(backward(&made(&[("attic", "")])), ["attic is in no room"]);
}

#[test]
fn layout_cycles_are_found() {
    let two = made(&[
        ("http::a", "use super::b::f;"),
        ("http::b", "use crate::http::a::g;"),
        ("http", ""),
    ]);
    assert_eq!(cycles(&two).len(), 2);
    let three = made(&[
        ("a", "use crate::b::f;"),
        ("b", "use crate::c::f;"),
        ("c", "use crate::a::f;"),
    ]);
    assert_eq!(cycles(&three).len(), 3);
    let none = made(&[
        ("a", "use crate::b::f;"),
        ("b", "use crate::c::f;"),
        ("c", ""),
    ]);
    assert!(cycles(&none).is_empty());
}
