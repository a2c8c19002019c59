//! The order of the modules on the crate's front page, against what each file imports.

use std::collections::HashMap;
use std::path::Path;

/// The modules of the table below "Module layout", in order.
fn documented() -> HashMap<String, usize> {
    let front = include_str!("../../src/lib.rs");
    let (_, rest) = front.split_once("# Module layout").unwrap();
    let table = rest.split("```").nth(1).unwrap();
    let rows = table
        .lines()
        .skip(1)
        .map(|row| row.trim_start_matches("//!").trim());
    let names = rows.flat_map(|row| row.split("  ").next().unwrap_or("").split(' '));
    let names = names.map(|name| name.trim_end_matches('/').to_owned());
    names.filter(|name| !name.is_empty()).zip(0..).collect()
}

/// The first names of the paths behind `crate::` in the code of a file, without its comments and
/// its tests.
fn imports(text: &str) -> Vec<String> {
    let code = text.split("#[cfg(test)]\nmod tests").next().unwrap_or(text);
    let lines = code
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"));
    let code = Vec::from_iter(lines).join("\n");
    let names = code.split("crate::").skip(1).map(|rest| {
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_');
        rest[..end.unwrap_or(rest.len())].to_owned()
    });
    names.collect()
}

fn violations(module: &str, text: &str, order: &HashMap<String, usize>) -> Vec<String> {
    let own = order[module];
    let late = imports(text)
        .into_iter()
        // What tests of the library plant in it.
        .filter(|name| name != "simulation")
        .filter(|name| match order.get(name) {
            Some(place) => *place > own,
            // The root's names are those of files that may come later.
            None => !matches!(module, "batch" | "capi" | "cli" | "testing"),
        });
    late.map(|name| format!("{module} imports {name}"))
        .collect()
}

fn check(
    folder: &Path,
    module: Option<&str>,
    order: &HashMap<String, usize>,
    found: &mut Vec<String>,
) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
        let top = module.unwrap_or(&stem);
        if path.is_dir() {
            // Text, and tests.
            if !matches!(stem.as_str(), "documentation" | "fuzzing" | "simulation") {
                check(&path, Some(top), order, found);
            }
        } else if path.extension().is_some_and(|ext| ext == "rs")
            && !matches!(top, "lib" | "main" | "cli")
            && !stem.ends_with("_tests")
        {
            if !order.contains_key(top) {
                found.push(format!("{top} is not in the table"));
                continue;
            }
            let text = std::fs::read_to_string(&path).unwrap();
            found.extend(violations(top, &text, order));
        }
    }
}

#[test]
fn layout_files_import_only_from_those_before_them() {
    let order = documented();
    assert!(order.len() > 30, "{order:?}");
    let mut found = Vec::new();
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    check(&src, None, &order, &mut found);
    assert!(found.is_empty(), "{found:#?}");
}

#[test]
fn layout_import_of_a_later_file_is_found() {
    let order = documented();
    let late = violations("error", "use crate::client::Client;\n", &order);
    assert_eq!(late, ["error imports client"]);
    let of_root = violations("error", "fn f(_: crate::Client) {}\n", &order);
    assert_eq!(of_root, ["error imports Client"]);
    let comment = "/// [`Client`](crate::Client)\nuse crate::text::clip;\n";
    assert!(violations("error", comment, &order).is_empty());
}
