//! The C interface, as C and Python use it: the header against the library, a C program that calls
//! everything (plain, under AddressSanitizer, under valgrind), and the Python module.
//!
//! What is not installed is skipped with a line on standard error.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, OnceLock};

use genesys_attributes::ErrorKind;

use crate::fake::full;
use crate::server::{Resp, Server};
use crate::store::Store;
use crate::wire_faults::tls::{Authority, TlsFront};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// Written past the harness, which keeps what a passing test prints to itself.
fn notice(text: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {text}");
}

fn works(command: &str, args: &[&str]) -> bool {
    Command::new(command)
        .args(args)
        .output()
        .is_ok_and(|output| output.status.success())
}

fn succeed(command: &mut Command) -> Output {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    output
}

/// The folder with the shared and the static library, which are built once, in a target folder of
/// their own: the one of this build is locked while it runs.
fn built() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).join("capi");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        succeed(
            Command::new(cargo)
                .current_dir(ROOT)
                .args(["rustc", "--quiet", "--lib", "--features", "capi,testing"])
                .args(["--crate-type", "cdylib,staticlib", "--target-dir"])
                .arg(&target),
        );
        target.join("debug")
    })
}

fn shared_library() -> PathBuf {
    let name = format!(
        "{}genesys_attributes{}",
        std::env::consts::DLL_PREFIX,
        std::env::consts::DLL_SUFFIX
    );
    built().join(name)
}

fn header() -> String {
    std::fs::read_to_string(Path::new(ROOT).join("include/genesys_attributes.h")).unwrap()
}

fn compiler() -> Option<String> {
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    if works(&cc, &["--version"]) {
        return Some(cc);
    }
    notice("there is no C compiler (cc, or what CC says)");
    None
}

const STRICT: [&str; 5] = ["-Wall", "-Wextra", "-Werror", "-pedantic", "-Iinclude"];

/// The names that stand before a parenthesis and begin with `gca_`, outside of comments.
fn declared(header: &str) -> BTreeSet<String> {
    let mut code = String::new();
    let mut rest = header;
    while let Some((before, after)) = rest.split_once("/*") {
        code += before;
        rest = after.split_once("*/").unwrap().1;
    }
    code += rest;
    code.match_indices("gca_")
        .filter_map(|(at, _)| {
            let name = &code[at..];
            let end = name.find(|c: char| !c.is_ascii_alphanumeric() && c != '_')?;
            name[end..].starts_with('(').then(|| name[..end].to_owned())
        })
        .collect()
}

/// The symbols that a shared library exports.
fn exported(library: &Path) -> Option<BTreeSet<String>> {
    if !works("nm", &["--version"]) {
        notice("there is no nm to list the exported symbols");
        return None;
    }
    let mut nm = Command::new("nm");
    if cfg!(target_os = "macos") {
        nm.args(["-gU"]);
    } else {
        nm.args(["-D", "--defined-only"]);
    }
    let listed = succeed(nm.arg(library)).stdout;
    Some(
        String::from_utf8(listed)
            .unwrap()
            .lines()
            .filter_map(|line| line.split_whitespace().last())
            .map(|name| name.trim_start_matches('_').to_owned())
            .collect(),
    )
}

#[test]
fn capi_header_declares_what_the_library_exports() {
    let Some(exported) = exported(&shared_library()) else {
        return;
    };
    assert_eq!(declared(&header()), exported);
}

#[test]
fn capi_header_status_codes_are_those_of_the_error_kinds() {
    let found: BTreeSet<(String, i32)> = header()
        .lines()
        .filter_map(|line| line.trim().strip_prefix("GCA_"))
        .filter_map(|line| line.split_once(" = "))
        .filter(|(name, _)| !name.starts_with("BATCH_"))
        .map(|(name, rest)| {
            let end = rest.find(|c: char| !c.is_ascii_digit()).unwrap();
            (name.to_owned(), rest[..end].parse().unwrap())
        })
        .collect();
    let screaming = |name: &str| {
        let mut out = String::new();
        for c in name.chars() {
            if c.is_ascii_uppercase() {
                out.push('_');
            }
            out.push(c.to_ascii_uppercase());
        }
        out
    };
    let mut expected: BTreeSet<(String, i32)> = ErrorKind::ALL
        .iter()
        .map(|kind| (screaming(kind.name()), kind.code()))
        .collect();
    expected.insert(("OK".into(), 0));
    assert_eq!(found, expected);
}

/// The names of the fields that `src/client/settings.rs` reads.
fn settings_fields() -> BTreeSet<String> {
    let code = std::fs::read_to_string(Path::new(ROOT).join("src/client/settings.rs")).unwrap();
    let code = code.split("#[cfg(test)]").next().unwrap();
    [
        "whole", "seconds", "millis", "text", "flag", "take", "object",
    ]
    .iter()
    .flat_map(|reads| {
        code.match_indices(&format!(".{reads}(\""))
            .map(|(at, found)| &code[at + found.len()..])
            .collect::<Vec<_>>()
    })
    .map(|rest| rest.split('"').next().unwrap().to_owned())
    .collect()
}

#[test]
fn capi_header_names_every_setting_and_field_of_an_update() {
    let header = header();
    let words: BTreeSet<&str> = header
        .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
        .collect();
    let fields = settings_fields();
    assert!(fields.len() > 40, "{fields:?}");
    for name in fields {
        assert!(words.contains(name.as_str()), "the header lacks {name}");
    }
    let update = "conversationId target participant record schema attributes remove ifVersion \
                  skipUnchanged unlocked verify";
    for name in update.split_whitespace() {
        assert!(words.contains(name), "the header lacks {name}");
    }
    // Those that the library knows.
    let unknown = r#"{"conversationId":"c","target":"conversation","unknown":1}"#;
    let error = serde_json::from_str::<genesys_attributes::Update>(unknown).unwrap_err();
    let known = error.to_string();
    let known = known.split_once("known are ").unwrap().1;
    let known = known.split([' ', ',']).filter(|w| !["", "and"].contains(w));
    let known: BTreeSet<&str> = known.take(11).collect();
    assert_eq!(known, update.split_whitespace().collect(), "{error}");
    for name in [
        "GENESYS_CLOUD_REGION",
        "GENESYS_CLOUD_CLIENT_ID",
        "GENESYS_CLOUD_CLIENT_SECRET",
        "GENESYS_CLOUD_BASE_URL",
        "GENESYSCLOUD_REGION",
        "GENESYSCLOUD_OAUTHCLIENT_ID",
        "GENESYSCLOUD_OAUTHCLIENT_SECRET",
        "GENESYSCLOUD_ACCESS_TOKEN",
    ] {
        assert!(words.contains(name), "the header lacks {name}");
    }
}

#[test]
fn capi_header_compiles_alone_as_c99_and_cpp17() {
    let Some(cc) = compiler() else {
        return;
    };
    let header = "include/genesys_attributes.h";
    let check = |compiler: &str, language: [&str; 3]| {
        succeed(
            Command::new(compiler)
                .current_dir(ROOT)
                .args(STRICT)
                .args(language)
                .args(["-fsyntax-only", header]),
        );
    };
    check(&cc, ["-std=c99", "-x", "c"]);
    let cxx = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
    if works(&cxx, &["--version"]) {
        check(&cxx, ["-std=c++17", "-x", "c++"]);
    } else {
        notice("there is no C++ compiler (c++, or what CXX says)");
    }
}

/// What the ids of the conversations in `tests/capi/all.c` and in the Python tests ask for.
fn serve(store: &Store) -> Server {
    let writes = AtomicU64::new(0);
    let processes = Mutex::new(HashMap::new());
    store.serve(move |req, store| {
        let id = req
            .path
            .strip_prefix("/api/v2/conversations/")?
            .split('/')
            .next()?;
        if let Some(rest) = id.strip_prefix("of-process-") {
            let process = rest.split('-').next()?.to_owned();
            let mut processes = processes.lock().unwrap();
            let first = processes.entry(req.connection).or_insert(process.clone());
            assert_eq!(*first, process, "two processes on one connection");
        }
        let write = req.method == "PATCH";
        let number = writes.fetch_add(u64::from(write), Ordering::Relaxed);
        match id {
            "absent" => Some(Resp::json(404, "{}")),
            "down" => write.then(|| Resp::json(503, "{}")),
            "forbidden" => Some(Resp::json(
                403,
                r#"{"code":"missing.any.permissions","message":"missing: [a:b:edit]"}"#,
            )),
            // Another writer, before every fifth write.
            "busy" => {
                if write && number.is_multiple_of(5) {
                    store.write_by_another(id);
                }
                None
            }
            // Failures, and answers that are lost after the work was done.
            _ if id.starts_with("faulty") && write => match number % 4 {
                0 => Some(Resp::json(503, "{}")),
                1 => {
                    store.answer(req);
                    Some(Resp::reset())
                }
                _ => None,
            },
            _ => None,
        }
    })
}

/// Compiles `tests/capi/all.c`.
fn compiled(cc: &str, name: &str, more: &[&str]) -> Result<PathBuf, String> {
    compiled_from("tests/capi/all.c", cc, name, more)
}

fn compiled_from(source: &str, cc: &str, name: &str, more: &[&str]) -> Result<PathBuf, String> {
    let folder = built();
    let program = folder.join(name);
    let output = Command::new(cc)
        .current_dir(ROOT)
        .args(STRICT)
        .args(["-std=c99", "-D_POSIX_C_SOURCE=200809L", "-g"])
        .args([source, "-o"])
        .arg(&program)
        .args(more)
        .arg("-lpthread")
        .output()
        .unwrap();
    if output.status.success() {
        Ok(program)
    } else {
        Err(String::from_utf8_lossy(&output.stderr).into_owned())
    }
}

/// The arguments that link with the shared library.
fn with_shared() -> Vec<String> {
    shared_library();
    let folder = built().display();
    vec![
        format!("-L{folder}"),
        "-lgenesys_attributes".into(),
        format!("-Wl,-rpath,{folder}"),
    ]
}

/// Runs it against a server of its own, and looks at what that saw.
fn run_all(command: &mut Command, rounds: u64) {
    let store = Store::default();
    let server = serve(&store);
    let output = succeed(
        command
            .env_clear()
            .env("ASAN_OPTIONS", "detect_leaks=1")
            .arg(server.url())
            .arg(rounds.to_string()),
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "all done\n");
    // Each of six threads counted up by one, `rounds` times, and nothing got lost between them.
    store.with("busy", |conversation| {
        assert_eq!(conversation.writes.len() as u64, 6 * rounds);
        assert_eq!(conversation.attributes["n"], 6 * rounds);
    });
    for worker in 0..6 {
        store.with(&format!("faulty-{worker}"), |conversation| {
            assert_eq!(conversation.attributes["n"], rounds);
        });
    }
    assert_eq!(server.panics(), 0);
}

#[test]
fn capi_program_passes_with_the_shared_library() {
    let Some(cc) = compiler() else {
        return;
    };
    let more = with_shared();
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let program = compiled(&cc, "all-shared", &more).unwrap();
    run_all(&mut Command::new(program), if full() { 20 } else { 3 });
}

/// The stand-in by https, each connection with one of its own behind it, and its authority's file.
fn secured(server: &Server, name: &str) -> (TlsFront, PathBuf) {
    let authority = Authority::new();
    let front = TlsFront::start(authority.server("127.0.0.1"), server.address());
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&path, authority.pem).unwrap();
    (front, path)
}

#[test]
#[cfg(unix)]
fn capi_forked_child_cannot_use_its_parents_client_and_frees_it() {
    let Some(cc) = compiler() else {
        return;
    };
    let more = with_shared();
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let program = compiled_from("tests/capi/fork.c", &cc, "fork", &more).unwrap();
    let store = Store::default();
    let server = serve(&store);
    let (front, authority) = secured(&server, "fork-c.pem");
    for (url, authority) in [(server.url(), Path::new("")), (front.url(), &authority)] {
        let output = succeed(Command::new(&program).env_clear().arg(url).arg(authority));
        assert_eq!(String::from_utf8_lossy(&output.stdout), "all done\n");
    }
    assert_eq!(server.panics(), 0);
}

#[test]
#[cfg(target_os = "linux")]
fn capi_library_may_be_unloaded_while_threads_that_called_it_live() {
    let Some(cc) = compiler() else {
        return;
    };
    let program = compiled_from("tests/capi/unload.c", &cc, "unload", &["-ldl"]).unwrap();
    let output = succeed(Command::new(program).arg(shared_library()));
    assert_eq!(String::from_utf8_lossy(&output.stdout), "all done\n");
}

#[test]
fn capi_batch_without_a_thread_says_so() {
    let Some(cc) = compiler() else {
        return;
    };
    let more = with_shared();
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let program = compiled(&cc, "all-no-threads", &more).unwrap();
    let store = Store::default();
    let server = serve(&store);
    let output = succeed(
        Command::new(program)
            .env_clear()
            // Stacks that no machine has.
            .env("RUST_MIN_STACK", (1_u64 << 50).to_string())
            .args([&server.url(), "no threads"]),
    );
    assert_eq!(String::from_utf8_lossy(&output.stdout), "all done\n");
}

#[test]
fn capi_program_passes_with_the_static_library() {
    let Some(cc) = compiler() else {
        return;
    };
    if !cfg!(target_os = "linux") {
        notice("the system libraries of the static library are listed for Linux only");
        return;
    }
    let library = built().join("libgenesys_attributes.a");
    let library = library.to_str().unwrap();
    let more = [library, "-lgcc_s", "-lutil", "-lrt", "-lm", "-ldl"];
    let program = compiled(&cc, "all-static", &more).unwrap();
    run_all(&mut Command::new(program), 5);
}

#[test]
fn capi_program_passes_under_address_sanitizer() {
    let Some(cc) = compiler().filter(|_| full()) else {
        return;
    };
    let mut more = with_shared();
    more.extend([
        "-fsanitize=address,undefined".into(),
        "-fno-omit-frame-pointer".into(),
    ]);
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    match compiled(&cc, "all-asan", &more) {
        Ok(program) => run_all(&mut Command::new(program), 20),
        Err(why) => notice(&format!("the compiler has no AddressSanitizer:\n{why}")),
    }
}

#[test]
fn capi_program_passes_under_valgrind_without_a_leak() {
    let Some(cc) = compiler().filter(|_| full()) else {
        return;
    };
    if !works("valgrind", &["--version"]) {
        notice("valgrind is not installed");
        return;
    }
    let more = with_shared();
    let more: Vec<&str> = more.iter().map(String::as_str).collect();
    let program = compiled(&cc, "all-valgrind", &more).unwrap();
    let mut valgrind = Command::new("valgrind");
    valgrind
        .args(["--quiet", "--fair-sched=yes", "--leak-check=full"])
        .args(["--show-leak-kinds=definite,indirect,possible"])
        .args(["--errors-for-leak-kinds=definite,indirect,possible"])
        .arg("--error-exitcode=9")
        .arg(program);
    run_all(&mut valgrind, 3);
}

#[test]
fn python_module_passes_its_tests() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".into());
    if !works(
        &python,
        &["-c", "import sys; sys.exit(sys.version_info < (3, 9))"],
    ) {
        notice("there is no Python 3.9 or later (python3, or what PYTHON says)");
        return;
    }
    let store = Store::default();
    let server = serve(&store);
    let (front, authority) = secured(&server, "fork-python.pem");
    succeed(
        Command::new(python)
            .current_dir(Path::new(ROOT).join("examples/python"))
            .args([
                "-W",
                "error",
                "-B",
                "-m",
                "unittest",
                "test_genesys_attributes",
            ])
            .env("GENESYS_ATTRIBUTES_LIBRARY", shared_library())
            .env("GENESYS_CLOUD_BASE_URL", server.url())
            .env("TEST_HTTPS_URL", front.url())
            .env("TEST_HTTPS_CA", authority)
            .env("GENESYS_CLOUD_CLIENT_ID", "id")
            .env("GENESYS_CLOUD_CLIENT_SECRET", "secret"),
    );
    assert_eq!(server.panics(), 0);
}
