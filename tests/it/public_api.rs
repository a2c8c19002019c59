//! The public API, one item a line, against the listing that is checked in: a change of it is
//! seen in review, and never happens by accident.
//!
//! The listing is made from the source text, following `pub use` from `lib.rs`, and not from what
//! the compiler sees: so it is the same with any features and on any toolchain. Items behind a
//! feature carry their `#[cfg]`. Of macros it understands what `metrics.rs` does: a struct whose
//! fields come from the documented names of one invocation. Methods made by macros, and auto
//! traits, it does not see.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::PathBuf;

use proc_macro2::{Delimiter, Spacing, TokenStream, TokenTree};
use quote::{ToTokens, quote};
use syn::{Attribute, Fields, FnArg, ImplItem, Item, Pat, Signature, TraitItem, UseTree};
use syn::{Generics, Type, Visibility};

const HOW: &str = "UPDATE_PUBLIC_API=1 cargo test --test it public_api";

#[test]
fn the_public_api_is_the_one_checked_in() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let file = root.join("tests/public-api.txt");
    let found = listing(&|path| fs::read_to_string(root.join("src").join(path)).ok());
    if std::env::var_os("UPDATE_PUBLIC_API").is_some() {
        fs::write(&file, &found).unwrap();
        return;
    }
    let expected = fs::read_to_string(&file).unwrap_or_default();
    let difference = difference(&expected, &found);
    assert!(
        difference.is_empty(),
        "the public API differs from tests/public-api.txt:\n\n{difference}\n\
         If that is meant, note it in CHANGELOG.md and run\n    {HOW}\n"
    );
}

#[test]
fn a_change_of_any_kind_shows() {
    let lib = "
        #![allow(unused)]
        mod a;
        #[cfg(feature = \"f\")] mod b;
        #[cfg(test)] mod t;
        pub use a::{Boxed, Kept, Kind, Shape as Form, Sized_, Wide, counted};
        #[cfg(feature = \"f\")] pub use b::gated;
        pub use other::Foreign;
    ";
    let a = "
        use crate::b::Hidden;
        /// Docs are no part of it.
        #[derive(Debug, Clone)] #[non_exhaustive]
        pub struct Kept { pub x: Vec<u8>, y: u8 }
        struct Private;
        impl Private { pub fn unseen(&self) {} }
        impl Hidden { pub fn unseen(&self) {} }
        impl<'a> Kept {
            pub fn new(mut x: impl Fn(&str) -> Option<&'a [u8]> + Send + 'static,) -> Result<Self, ()> { todo!() }
            pub(crate) fn internal(&self) {}
            #[must_use] pub const fn len(mut self) -> usize { 0 }
        }
        impl std::fmt::Display for Kept { fn fmt(&self) {} }
        impl From<io::Error> for Kept { fn from(e: io::Error) -> Kept { todo!() } }
        pub enum Kind { One = 1, Two(u8, String), Three { a: u8 } }
        pub trait Shape: Send + Sync { type Out; fn area(&self) -> u64; fn name(&self) -> &'static str { \"\" } }
        impl<F> Shape for F where F: Fn() {}
        use std::error::Error as StdError;
        impl StdError for Kept {}
        impl Deref for Kept { type Target = Kind; }
        pub struct Sized_;
        pub struct Boxed<T> { inside: T }
        impl<T: Send> Boxed<T> where T: Sync { pub const ALL: [u8; 1] = [0]; pub fn get(&self) -> T { todo!() } }
        impl<T: Send> Shape for Boxed<T> where T: Sync { type Out = u8; }
        pub type Wide<T, E = Kind> = std::result::Result<T, E>;
        macro_rules! counters { ($($(#[$d:meta])* $f:ident, $j:literal;)*) => {
            #[derive(Default)] struct Other { $($f: u8,)* }
            /// Made.
            #[derive(Debug)] pub struct counted { $($(#[$d])* pub $f: u64,)* pub last: u8, own: u8 }
        } }
        counters! { /// One.
            one, \"1\"; /// Two.
            two, \"2\"; }
    ";
    let b = "pub struct Hidden; pub unsafe fn gated(p: *const u8) -> [u8; 2] { todo!() }";
    let with = |a: &str| {
        let files = HashMap::from([("lib.rs", lib), ("a.rs", a), ("b/mod.rs", b)]);
        listing(&|path| files.get(path).map(|text| text.to_string()))
    };
    let listed = with(a);
    let expected = r#"
pub struct Boxed<T> { .. }
pub const Boxed<T: Send>::ALL: [u8; 1] where T: Sync
pub fn Boxed<T: Send>::get(&self) -> T where T: Sync
impl<T: Send> Form for Boxed<T> where T: Sync { type Out = u8 }
pub trait Form: Send + Sync
fn Form::area(&self) -> u64
fn Form::name(&self) -> &'static str { .. }
type Form::Out
impl<F> Form for F where F: Fn()
#[non_exhaustive] pub struct Kept { .. }
pub Kept::x: Vec<u8>
#[must_use] pub const fn Kept::len(self) -> usize
pub fn Kept::new(x: impl Fn(&str) -> Option<&'a [u8]> + Send + 'static) -> Result<Self, ()>
impl Clone for Kept
impl Debug for Kept
impl Deref for Kept { type Target = Kind }
impl Display for Kept
impl From<io::Error> for Kept
impl std::error::Error for Kept
pub enum Kind
pub Kind::One = 1
pub Kind::Three { a: u8 }
pub Kind::Two(u8, String)
pub struct Sized_;
pub type Wide<T, E = Kind> = std::result::Result<T, E>
pub struct counted { .. }
pub counted::last: u8
pub counted::one: u64
pub counted::two: u64
impl Debug for counted
#[cfg(feature = "f")] pub unsafe fn gated(p: *const u8) -> [u8; 2]
pub use other::Foreign
"#;
    assert_eq!(difference(expected.trim_start(), &listed), "");
    for (from, to) in [
        ("pub x: Vec<u8>", "pub x: Vec<u16>"),
        ("#[derive(Debug, Clone)]", "#[derive(Debug)]"),
        ("pub const fn len", "fn len"),
        ("{ a: u8 }", "{ a: u16 }"),
        ("/// Two.\n            two", "/// Two.\n            deux"),
        ("impl From<io::Error>", "impl From<io::Other>"),
        ("type Target = Kind", "type Target = u8"),
        ("Shape for Boxed<T> where T: Sync", "Shape for Boxed<T>"),
    ] {
        assert!(a.contains(from), "{from}");
        assert_ne!(with(&a.replace(from, to)), listed, "{from}");
    }
}

/// The lines that only one of two sorted listings has.
fn difference(expected: &str, found: &str) -> String {
    let lines = |text: &str| -> BTreeSet<String> {
        let lines = text.lines().map(str::trim_end);
        lines.filter(|l| !l.is_empty()).map(str::to_owned).collect()
    };
    let (expected, found) = (lines(expected), lines(found));
    let gone = expected.difference(&found).map(|l| format!("- {l}\n"));
    gone.chain(found.difference(&expected).map(|l| format!("+ {l}\n")))
        .collect()
}

/// The listing of the crate whose files below `src` are read by `read`.
fn listing(read: &dyn Fn(&str) -> Option<String>) -> String {
    let mut krate = Crate::default();
    let lib = read("lib.rs").expect("src/lib.rs");
    krate.load(read, &[], Vec::new(), parsed("lib.rs", &lib));
    let mut lines = BTreeSet::new();
    let exports = krate.exports(&[], "", &[]);
    for export in &exports {
        krate.describe(export, &mut lines);
    }
    krate.impls(&exports, &mut lines);
    krate.symbols(&mut lines);
    lines
        .into_iter()
        .map(|line: Line| line.text + "\n")
        .collect()
}

fn parsed(path: &str, text: &str) -> Vec<Item> {
    syn::parse_file(text)
        .unwrap_or_else(|e| panic!("src/{path}: {e}"))
        .items
}

/// One line, with what it is sorted by: what it belongs to, then definitions before members
/// before implementations.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Line {
    owner: String,
    rank: u8,
    name: String,
    text: String,
}

const DEFINITION: u8 = 0;
const MEMBER: u8 = 1;
const METHOD: u8 = 2;
const IMPLEMENTATION: u8 = 3;

fn line(owner: &str, rank: u8, name: impl ToString, text: String) -> Line {
    Line {
        owner: owner.to_owned(),
        rank,
        name: name.to_string(),
        text,
    }
}

/// The names of modules from the root.
type ModulePath = Vec<String>;

#[derive(Default)]
struct Crate {
    modules: BTreeMap<ModulePath, Module>,
}

struct Module {
    items: Vec<Item>,
    gates: Vec<String>,
}

/// Something that can be named from outside.
struct Export {
    /// As seen from outside.
    name: String,
    gates: Vec<String>,
    /// The module and the name of its definition, or the path of another crate's item.
    definition: Result<(ModulePath, String), String>,
}

/// One name that a `use` brings in.
struct Import {
    public: bool,
    name: String,
    path: Vec<String>,
    gates: Vec<String>,
}

impl Crate {
    fn load(
        &mut self,
        read: &dyn Fn(&str) -> Option<String>,
        path: &[String],
        gates: Vec<String>,
        items: Vec<Item>,
    ) {
        for item in &items {
            let Item::Mod(module) = item else { continue };
            let Some(own) = gates_of(&module.attrs) else {
                continue;
            };
            let mut child = path.to_vec();
            child.push(module.ident.to_string());
            let content = match &module.content {
                Some((_, items)) => items.clone(),
                None => {
                    let stem = child.join("/");
                    let (file, text) = [format!("{stem}.rs"), format!("{stem}/mod.rs")]
                        .into_iter()
                        .find_map(|file| read(&file).map(|text| (file, text)))
                        .unwrap_or_else(|| panic!("src/{stem}.rs is missing"));
                    parsed(&file, &text)
                }
            };
            self.load(read, &child, joined(&gates, own), content);
        }
        self.modules.insert(path.to_vec(), Module { items, gates });
    }

    fn imports(&self, module: &[String]) -> Vec<Import> {
        let mut found = Vec::new();
        for item in &self.modules[module].items {
            if let Item::Use(item) = item
                && let Some(gates) = gates_of(&item.attrs)
            {
                let mut names = Vec::new();
                flatten(&item.tree, &mut Vec::new(), &mut names);
                found.extend(names.into_iter().map(|(name, path)| Import {
                    public: is_public(&item.vis),
                    name,
                    path,
                    gates: gates.clone(),
                }));
            }
        }
        found
    }

    /// The module that a path leads to, seen from `module`.
    fn module_at(&self, module: &[String], path: &[String]) -> Option<ModulePath> {
        let mut at = module.to_vec();
        for (i, segment) in path.iter().enumerate() {
            match segment.as_str() {
                "crate" if i == 0 => at.clear(),
                "self" if i == 0 => {}
                "super" => drop(at.pop()?),
                name => at.push(name.to_owned()),
            }
        }
        self.modules.contains_key(&at).then_some(at)
    }

    /// Where the item that a path names, seen from `module`, is defined.
    fn resolve(&self, module: &[String], path: &[String]) -> Option<(ModulePath, String)> {
        self.resolve_within(module, path, 8)
    }

    fn resolve_within(
        &self,
        module: &[String],
        path: &[String],
        depth: usize,
    ) -> Option<(ModulePath, String)> {
        let (name, parents) = path.split_last()?;
        if depth == 0 {
            return None;
        }
        let Some(home) = self.module_at(module, parents) else {
            // The first segment may be a module that was imported.
            let (first, rest) = path.split_first()?;
            let import = self
                .imports(module)
                .into_iter()
                .find(|i| i.name == *first && i.path != path)?;
            let path = [&import.path[..], rest].concat();
            return self.resolve_within(module, &path, depth - 1);
        };
        if self.definition(&home, name).is_some() {
            return Some((home, name.clone()));
        }
        let imports = self.imports(&home);
        imports
            .iter()
            .filter(|i| i.name == *name || i.name == "*")
            .find_map(|i| {
                let glob = i.name == "*";
                let path = [
                    &i.path[..],
                    if glob { &path[path.len() - 1..] } else { &[] },
                ]
                .concat();
                self.resolve_within(&home, &path, depth - 1)
            })
    }

    fn definition(&self, module: &[String], name: &str) -> Option<Item> {
        let items = &self.modules.get(module)?.items;
        items
            .iter()
            .find(|item| {
                let named = match item {
                    Item::Struct(i) => &i.ident,
                    Item::Enum(i) => &i.ident,
                    Item::Union(i) => &i.ident,
                    Item::Trait(i) => &i.ident,
                    Item::Fn(i) => &i.sig.ident,
                    Item::Type(i) => &i.ident,
                    Item::Const(i) => &i.ident,
                    Item::Static(i) => &i.ident,
                    _ => return false,
                };
                named == name && attributes(item).is_some_and(|a| gates_of(a).is_some())
            })
            .cloned()
            .or_else(|| made_by_macro(items, name))
    }

    /// What `module` shows to the outside.
    fn exports(&self, module: &[String], prefix: &str, gates: &[String]) -> Vec<Export> {
        let mut found = Vec::new();
        for item in &self.modules[module].items {
            let Some(own) = attributes(item).and_then(gates_of) else {
                continue;
            };
            let gates = joined(gates, own);
            match item {
                Item::Mod(inner) if is_public(&inner.vis) => {
                    let name = inner.ident.to_string();
                    let path = [module, std::slice::from_ref(&name)].concat();
                    found.extend(self.exports(&path, &format!("{prefix}{name}::"), &gates));
                }
                Item::Use(_) => {}
                Item::Macro(item)
                    if item.attrs.iter().any(|a| a.path().is_ident("macro_export")) =>
                {
                    let name = item.ident.as_ref().map(ToString::to_string);
                    let name = format!("macro_rules! {}", name.unwrap_or_default());
                    found.push(Export {
                        definition: Err(name.clone()),
                        name,
                        gates,
                    });
                }
                item => {
                    if let Some(name) = public_name(item) {
                        found.push(Export {
                            name: format!("{prefix}{name}"),
                            gates,
                            definition: Ok((module.to_vec(), name)),
                        });
                    }
                }
            }
        }
        for import in self.imports(module).into_iter().filter(|i| i.public) {
            let gates = joined(gates, import.gates);
            let glob = import.name == "*";
            let name = format!("{prefix}{}", import.name);
            if let Some(path) = self.module_at(module, &import.path) {
                let prefix = if glob { prefix } else { &format!("{name}::") };
                found.extend(self.exports(&path, prefix, &gates));
            } else {
                let definition = self
                    .resolve(module, &import.path)
                    .ok_or_else(|| format!("pub use {}", import.path.join("::")));
                found.push(Export {
                    name,
                    gates,
                    definition,
                });
            }
        }
        found
    }

    /// The lines of an item, without those of its `impl` blocks.
    fn describe(&self, export: &Export, lines: &mut BTreeSet<Line>) {
        let name = &export.name;
        let (module, own_name) = match &export.definition {
            Ok(definition) => definition,
            Err(text) => {
                let text = front(&export.gates, &[]) + text;
                // Behind everything of our own.
                lines.insert(line("~", DEFINITION, name, text));
                return;
            }
        };
        let item = self.definition(module, own_name).expect("was resolved");
        let attrs = attributes(&item).expect("a definition has attributes");
        let gates = joined(&export.gates, gates_of(attrs).unwrap_or_default());
        let start = front(&gates, attrs);
        let mut add = |rank, key: String, text: String| lines.insert(line(name, rank, key, text));
        let whole = match &item {
            Item::Struct(item) => {
                let text = format!("pub struct {name}{}", generics(&item.generics));
                for (i, field) in item.fields.iter().enumerate() {
                    if is_public(&field.vis) {
                        let field_name = match &field.ident {
                            Some(ident) => ident.to_string(),
                            None => i.to_string(),
                        };
                        let start = front(&own_gates(&gates, &field.attrs), &field.attrs);
                        let ty = render(field.ty.to_token_stream());
                        let text = format!("{start}pub {name}::{field_name}: {ty}");
                        add(MEMBER, field_name, text);
                    }
                }
                match &item.fields {
                    Fields::Unit => text + ";",
                    Fields::Unnamed(_) => text + "(..)",
                    fields if fields.iter().all(|f| is_public(&f.vis)) => text,
                    Fields::Named(_) => text + " { .. }",
                }
            }
            Item::Enum(item) => {
                for variant in &item.variants {
                    let start = front(&own_gates(&gates, &variant.attrs), &variant.attrs);
                    let mut fields = variant.fields.clone();
                    for field in &mut fields {
                        field.attrs.clear();
                    }
                    let fields = render(fields.to_token_stream());
                    let space = if fields.starts_with('{') { " " } else { "" };
                    let value = match &variant.discriminant {
                        Some((_, value)) => format!(" = {}", render(value.to_token_stream())),
                        None => String::new(),
                    };
                    let ident = &variant.ident;
                    let text = format!("{start}pub {name}::{ident}{space}{fields}{value}");
                    add(MEMBER, ident.to_string(), text);
                }
                format!("pub enum {name}{}", generics(&item.generics))
            }
            Item::Union(item) => format!("pub union {name}{}", generics(&item.generics)),
            Item::Trait(item) => {
                for member in &item.items {
                    let (key, text, attrs) = match member {
                        TraitItem::Fn(f) => {
                            let default = if f.default.is_some() { " { .. }" } else { "" };
                            let text = signature(&f.sig, &format!("{name}::")) + default;
                            (&f.sig.ident, text, &f.attrs)
                        }
                        TraitItem::Type(t) => {
                            (&t.ident, format!("type {name}::{}", t.ident), &t.attrs)
                        }
                        TraitItem::Const(c) => {
                            let ty = render(c.ty.to_token_stream());
                            let text = format!("const {name}::{}: {ty}", c.ident);
                            (&c.ident, text, &c.attrs)
                        }
                        other => panic!("{name}: a trait item that is not known here: {other:?}"),
                    };
                    let start = front(&own_gates(&gates, attrs), attrs);
                    add(MEMBER, key.to_string(), start + &text);
                }
                let bounds = item.supertraits.to_token_stream();
                let bounds = match bounds.is_empty() {
                    true => String::new(),
                    false => format!(": {}", render(bounds)),
                };
                let safety = if item.unsafety.is_some() {
                    "unsafe "
                } else {
                    ""
                };
                format!(
                    "pub {safety}trait {name}{}{bounds}",
                    generics(&item.generics)
                )
            }
            Item::Fn(item) => {
                let mut sig = item.sig.clone();
                sig.ident = syn::Ident::new(own_name, proc_macro2::Span::call_site());
                let path = name.strip_suffix(own_name.as_str()).unwrap_or_default();
                format!("pub {}", signature(&sig, path))
            }
            Item::Type(item) => {
                let ty = render(item.ty.to_token_stream());
                format!("pub type {name}{} = {ty}", generics(&item.generics))
            }
            Item::Const(item) => format!("pub const {name}: {}", render(item.ty.to_token_stream())),
            Item::Static(item) => {
                format!("pub static {name}: {}", render(item.ty.to_token_stream()))
            }
            other => panic!("{name}: an item that is not known here: {other:?}"),
        };
        add(DEFINITION, String::new(), start + &whole);
        for derived in derives(attrs) {
            let text = front(&gates, &[]) + &format!("impl {derived} for {name}");
            add(IMPLEMENTATION, text.clone(), text);
        }
    }

    /// The lines of the `impl` blocks of exported types and traits.
    fn impls(&self, exports: &[Export], lines: &mut BTreeSet<Line>) {
        let public: HashMap<&(ModulePath, String), &Export> = exports
            .iter()
            .filter_map(|e| e.definition.as_ref().ok().map(|d| (d, e)))
            .collect();
        for (path, module) in &self.modules {
            for item in &module.items {
                let Item::Impl(item) = item else { continue };
                let Some(own) = gates_of(&item.attrs) else {
                    continue;
                };
                let ours = path_of(&item.self_ty).and_then(|p| self.resolve(path, &p));
                let owner = ours.as_ref().and_then(|d| public.get(d));
                if ours.is_some() && owner.is_none() {
                    continue;
                }
                let gates = joined(&module.gates, own);
                // Lifetimes of an `impl` say nothing to callers.
                let is_generic = item.generics.type_params().next().is_some()
                    || item.generics.const_params().next().is_some();
                let (parameters, bounds) = match is_generic {
                    true => (
                        render(item.generics.to_token_stream()),
                        where_of(&item.generics),
                    ),
                    false => Default::default(),
                };
                let Some((interface, _)) = &item.trait_ else {
                    if let Some(owner) = owner {
                        let gates = joined(&owner.gates, gates);
                        let shown = format!("{}{parameters}::", owner.name);
                        members(&owner.name, &shown, &bounds, &gates, &item.items, lines);
                    }
                    continue;
                };
                let segments = idents(interface);
                let exported = self.resolve(path, &segments).and_then(|d| public.get(&d));
                let Some(about) = owner.or(exported) else {
                    continue;
                };
                let gates = joined(&about.gates, gates);
                let last = interface.segments.last().expect("a path").clone();
                let arguments = render(last.arguments.to_token_stream());
                let interface = match exported {
                    Some(export) => export.name.clone(),
                    None => self.unaliased(path, &segments),
                };
                let interface = interface + &arguments.replace("<'de>", "");
                let ty = match owner {
                    Some(owner) if !is_generic => owner.name.clone(),
                    _ => render(item.self_ty.to_token_stream()),
                };
                let types = item.items.iter().filter_map(|member| match member {
                    ImplItem::Type(t) => {
                        let ty = render(t.ty.to_token_stream());
                        Some(format!(" {{ type {} = {ty} }}", t.ident))
                    }
                    _ => None,
                });
                let types: String = types.collect();
                let text = front(&gates, &[])
                    + &format!("impl{parameters} {interface} for {ty}{bounds}{types}");
                lines.insert(line(&about.name, IMPLEMENTATION, &text, text.clone()));
            }
        }
    }

    /// The last name of a path to another crate's item; all of the path that a `use` renamed.
    fn unaliased(&self, module: &[String], path: &[String]) -> String {
        let last = path.last().cloned().unwrap_or_default();
        let imports = self.imports(module);
        let import = imports.iter().find(|i| path.len() == 1 && i.name == last);
        match import {
            Some(import) if import.path.last() != Some(&last) => import.path.join("::"),
            _ => last,
        }
    }

    /// What the linker exports is public wherever it stands.
    fn symbols(&self, lines: &mut BTreeSet<Line>) {
        for module in self.modules.values() {
            for item in &module.items {
                if let Item::Fn(item) = item
                    && item.attrs.iter().any(is_symbol)
                    && let Some(own) = gates_of(&item.attrs)
                {
                    let start = front(&joined(&module.gates, own), &item.attrs);
                    let text = start + &signature(&item.sig, "");
                    lines.insert(line("~~", DEFINITION, &item.sig.ident, text));
                }
            }
        }
    }
}

/// The public members of an inherent `impl`.
fn members(
    owner: &str,
    shown: &str,
    bounds: &str,
    gates: &[String],
    items: &[ImplItem],
    lines: &mut BTreeSet<Line>,
) {
    for member in items {
        let (key, text, attrs) = match member {
            ImplItem::Fn(f) if is_public(&f.vis) => {
                let text = format!("pub {}{bounds}", signature(&f.sig, shown));
                (&f.sig.ident, text, &f.attrs)
            }
            ImplItem::Const(c) if is_public(&c.vis) => {
                let ty = render(c.ty.to_token_stream());
                (
                    &c.ident,
                    format!("pub const {shown}{}: {ty}{bounds}", c.ident),
                    &c.attrs,
                )
            }
            _ => continue,
        };
        if let Some(own) = gates_of(attrs) {
            let start = front(&joined(gates, own), attrs);
            lines.insert(line(owner, METHOD, key, start + &text));
        }
    }
}

/// The names of a `use`, with their paths; `*` for a glob.
fn flatten(tree: &UseTree, path: &mut Vec<String>, found: &mut Vec<(String, Vec<String>)>) {
    let mut add = |name: String, last: &dyn ToString| {
        let mut path = path.clone();
        if last.to_string() != "self" || path.is_empty() {
            path.push(last.to_string());
        }
        let own = path.last().cloned().unwrap_or_default();
        found.push((if name == "self" { own } else { name }, path));
    };
    match tree {
        UseTree::Name(name) => add(name.ident.to_string(), &name.ident),
        UseTree::Rename(rename) => add(rename.rename.to_string(), &rename.ident),
        UseTree::Glob(_) => found.push(("*".into(), path.clone())),
        UseTree::Path(inner) => {
            path.push(inner.ident.to_string());
            flatten(&inner.tree, path, found);
            path.pop();
        }
        UseTree::Group(group) => {
            for tree in &group.items {
                flatten(tree, path, found);
            }
        }
    }
}

/// The struct `name` out of the body of a `macro_rules!` of the same file, with the fields that
/// the macro's one invocation gives it: the names that follow a doc comment.
fn made_by_macro(items: &[Item], name: &str) -> Option<Item> {
    items.iter().find_map(|item| {
        let Item::Macro(rules) = item else {
            return None;
        };
        let macro_name = rules.ident.as_ref()?;
        let body = rules.mac.tokens.clone().into_iter().filter_map(braced).last()?;
        let tokens: Vec<TokenTree> = body.into_iter().collect();
        let at = tokens.windows(2).position(|pair| {
            pair[0].to_string() == "struct" && pair[1].to_string() == name
        })?;
        let start = (0..at)
            .rev()
            .take_while(|i| !matches!(&tokens[*i], TokenTree::Group(g) if g.delimiter() == Delimiter::Brace))
            .last()?;
        let fields = tokens.get(at + 2).cloned().and_then(braced)?;
        let invocation = items.iter().find_map(|item| match item {
            Item::Macro(call) if call.mac.path.is_ident(macro_name) => Some(&call.mac.tokens),
            _ => None,
        })?;
        let names = documented_names(invocation.clone());

        let mut expanded = TokenStream::new();
        let mut rest = fields.into_iter().peekable();
        while let Some(token) = rest.next() {
            if token.to_string() != "$" {
                expanded.extend([token]);
                continue;
            }
            // `$( ... pub $field: TYPE, )*`
            let Some(TokenTree::Group(repeated)) = rest.next() else {
                return None;
            };
            rest.next_if(|token| token.to_string() == "*");
            let repeated: Vec<TokenTree> = repeated.stream().into_iter().collect();
            let public = repeated.iter().any(|t| t.to_string() == "pub");
            let colon = repeated.iter().position(|t| t.to_string() == ":")?;
            let ty: TokenStream = repeated[colon + 1..].iter().cloned().collect();
            for name in &names {
                expanded.extend(if public {
                    quote!(pub #name: #ty)
                } else {
                    quote!(#name: #ty)
                });
            }
        }
        let head: TokenStream = tokens[start..at + 2].iter().cloned().collect();
        syn::parse2(quote!(#head { #expanded })).ok().map(Item::Struct)
    })
}

fn braced(token: TokenTree) -> Option<TokenStream> {
    match token {
        TokenTree::Group(g) if g.delimiter() == Delimiter::Brace => Some(g.stream()),
        _ => None,
    }
}

fn documented_names(tokens: TokenStream) -> Vec<proc_macro2::Ident> {
    let tokens: Vec<TokenTree> = tokens.into_iter().collect();
    tokens
        .windows(2)
        .filter_map(|pair| match pair {
            [TokenTree::Group(doc), TokenTree::Ident(name)]
                if doc.delimiter() == Delimiter::Bracket
                    && doc.stream().to_string().starts_with("doc") =>
            {
                Some(name.clone())
            }
            _ => None,
        })
        .collect()
}

fn attributes(item: &Item) -> Option<&[Attribute]> {
    Some(match item {
        Item::Const(i) => &i.attrs,
        Item::Enum(i) => &i.attrs,
        Item::Fn(i) => &i.attrs,
        Item::Macro(i) => &i.attrs,
        Item::Mod(i) => &i.attrs,
        Item::Static(i) => &i.attrs,
        Item::Struct(i) => &i.attrs,
        Item::Trait(i) => &i.attrs,
        Item::Type(i) => &i.attrs,
        Item::Union(i) => &i.attrs,
        Item::Use(i) => &i.attrs,
        _ => return None,
    })
}

fn public_name(item: &Item) -> Option<String> {
    let (vis, ident) = match item {
        Item::Const(i) => (&i.vis, &i.ident),
        Item::Enum(i) => (&i.vis, &i.ident),
        Item::Fn(i) => (&i.vis, &i.sig.ident),
        Item::Static(i) => (&i.vis, &i.ident),
        Item::Struct(i) => (&i.vis, &i.ident),
        Item::Trait(i) => (&i.vis, &i.ident),
        Item::Type(i) => (&i.vis, &i.ident),
        Item::Union(i) => (&i.vis, &i.ident),
        _ => return None,
    };
    is_public(vis).then(|| ident.to_string())
}

fn is_public(vis: &Visibility) -> bool {
    matches!(vis, Visibility::Public(_))
}

/// The conditions under which something exists; `None` for what exists in tests only.
fn gates_of(attrs: &[Attribute]) -> Option<Vec<String>> {
    let gates: Vec<String> = attrs
        .iter()
        .filter(|a| a.path().is_ident("cfg"))
        .map(|a| render(a.to_token_stream()))
        .collect();
    (!gates.iter().any(|gate| gate == "#[cfg(test)]")).then_some(gates)
}

fn own_gates(outer: &[String], attrs: &[Attribute]) -> Vec<String> {
    joined(outer, gates_of(attrs).unwrap_or_default())
}

fn joined(outer: &[String], own: Vec<String>) -> Vec<String> {
    let mut all = outer.to_vec();
    for gate in own {
        if !all.contains(&gate) {
            all.push(gate);
        }
    }
    all
}

/// Conditions, and the attributes that callers feel, in front of an item.
fn front(gates: &[String], attrs: &[Attribute]) -> String {
    const FELT: [&str; 5] = [
        "non_exhaustive",
        "must_use",
        "deprecated",
        "repr",
        "no_mangle",
    ];
    let felt = attrs.iter().filter(|a| {
        FELT.iter().any(|name| a.path().is_ident(name))
            || is_symbol(a)
            || render(a.to_token_stream()) == "#[doc(hidden)]"
    });
    let felt = felt.map(|a| render(a.to_token_stream()));
    gates.iter().cloned().chain(felt).map(|a| a + " ").collect()
}

fn is_symbol(attr: &Attribute) -> bool {
    let text = render(attr.to_token_stream());
    text.contains("no_mangle") || text.contains("export_name")
}

fn derives(attrs: &[Attribute]) -> Vec<String> {
    let mut found = Vec::new();
    for attr in attrs.iter().filter(|a| a.path().is_ident("derive")) {
        attr.parse_nested_meta(|meta| {
            found.extend(meta.path.segments.last().map(|s| s.ident.to_string()));
            Ok(())
        })
        .expect("a list of paths");
    }
    found
}

fn path_of(ty: &Type) -> Option<Vec<String>> {
    match ty {
        Type::Path(ty) => Some(idents(&ty.path)),
        _ => None,
    }
}

fn idents(path: &syn::Path) -> Vec<String> {
    path.segments.iter().map(|s| s.ident.to_string()).collect()
}

fn generics(generics: &Generics) -> String {
    let mut parameters = generics.clone();
    parameters.params.pop_punct();
    render(parameters.to_token_stream()) + &where_of(generics)
}

fn where_of(generics: &Generics) -> String {
    let Some(mut clause) = generics.where_clause.clone() else {
        return String::new();
    };
    clause.predicates.pop_punct();
    format!(" {}", render(clause.to_token_stream()))
}

/// A signature as callers see it: without attributes, and without the `mut` of an argument.
fn signature(sig: &Signature, owner: &str) -> String {
    let mut sig = sig.clone();
    sig.inputs.pop_punct();
    sig.generics.params.pop_punct();
    if let Some(clause) = &mut sig.generics.where_clause {
        clause.predicates.pop_punct();
    }
    for input in &mut sig.inputs {
        match input {
            FnArg::Receiver(receiver) => {
                receiver.attrs.clear();
                receiver.mutability = None;
            }
            FnArg::Typed(argument) => {
                argument.attrs.clear();
                if let Pat::Ident(name) = &mut *argument.pat {
                    name.mutability = None;
                }
            }
        }
    }
    let name = sig.ident.to_string();
    let text = render(sig.to_token_stream());
    text.replacen(&format!("fn {name}"), &format!("fn {owner}{name}"), 1)
}

/// Tokens as text, spaced about as rustfmt does.
fn render(tokens: TokenStream) -> String {
    let mut pieces = Vec::new();
    split(tokens, &mut pieces);
    let mut text = String::new();
    for (i, piece) in pieces.iter().enumerate() {
        if i > 0 && is_spaced(&pieces[i - 1], piece) {
            text.push(' ');
        }
        text.push_str(piece);
    }
    text
}

fn split(tokens: TokenStream, pieces: &mut Vec<String>) {
    let mut operator = String::new();
    for token in tokens {
        match token {
            TokenTree::Punct(punct) => {
                operator.push(punct.as_char());
                let goes_on = punct.spacing() == Spacing::Joint
                    && matches!(operator.as_str(), ":" | "-" | "=" | "." | ".." | "'");
                if !goes_on {
                    pieces.push(std::mem::take(&mut operator));
                }
            }
            TokenTree::Group(group) => {
                let (open, close) = match group.delimiter() {
                    Delimiter::Parenthesis => ("(", ")"),
                    Delimiter::Brace => ("{", "}"),
                    Delimiter::Bracket => ("[", "]"),
                    Delimiter::None => ("", ""),
                };
                pieces.push(open.to_owned());
                split(group.stream(), pieces);
                pieces.push(close.to_owned());
            }
            // A lifetime is a quote and a name.
            token => pieces.push(std::mem::take(&mut operator) + &token.to_string()),
        }
    }
    pieces.retain(|piece| !piece.is_empty());
}

fn is_spaced(before: &str, after: &str) -> bool {
    let is_word = |text: &str| {
        let mut letters = text.chars();
        letters
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || c == '_')
    };
    let is_keyword = matches!(
        before,
        "dyn" | "impl" | "mut" | "const" | "as" | "where" | "for"
    );
    match (before, after) {
        ("(" | "[" | "<" | "&" | "::" | "*" | "?" | "!" | "#" | ".", _) => false,
        (_, ")" | "]" | ">" | "," | ";" | ":" | "::" | "." | "!") => false,
        ("impl" | "for" | "fn", "<") => false,
        (_, "(") => !(before == ">" || is_word(before) && !is_keyword),
        (_, "<") => !is_word(before),
        _ => true,
    }
}
