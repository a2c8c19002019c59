//! Keeps the C library loaded until the process ends.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    let is = |name, value: Option<&str>| std::env::var(name).ok().as_deref() == value;
    // A thread that called the library runs its destructors when it ends, also after dlclose().
    if is("CARGO_FEATURE_CAPI", Some("1")) && is("CARGO_CFG_TARGET_OS", Some("linux")) {
        println!("cargo::rustc-link-arg=-Wl,-z,nodelete");
    }
}
