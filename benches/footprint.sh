#!/usr/bin/env bash
# What the library adds to a program: its size, its clean build time and its crates, against the
# same program by hand on ureq, serde, serde_json and log.
#
#   benches/footprint.sh [rounds]
#
# Both are built from nothing, in turns, `rounds` times (1 if not given). Build times drift with
# the machine's load: only the ratio of builds that took turns means anything.
set -euo pipefail

rounds=${1:-1}
repo=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
temp=$(mktemp -d)
trap 'rm -rf "$temp"' EXIT
unset CARGO_TARGET_DIR CARGO_BUILD_TARGET_DIR RUSTFLAGS

# program NAME: its manifest up to the dependencies, with the same versions locked as here.
program() {
    mkdir -p "$temp/$1/src"
    cp "$repo/Cargo.lock" "$temp/$1/Cargo.lock"
    cat >"$temp/$1/Cargo.toml" <<TOML
[package]
name = "$1"
version = "0.0.0"
edition = "2024"

[profile.release]
strip = true

[dependencies]
TOML
}

program with-library
cat >>"$temp/with-library/Cargo.toml" <<TOML
genesys-attributes = { path = "$repo" }
TOML
cat >"$temp/with-library/src/main.rs" <<'RUST'
use genesys_attributes::{Client, Error, Update};

fn main() -> Result<(), Error> {
    let client = Client::from_env()?;
    let update = Update::conversation("00000000-0000-0000-0000-000000000000")
        .set("customer.tier", "premium")
        .set("routing.score", 85);
    let receipt = client.update(&update)?;
    println!("{:?}", receipt.version);
    Ok(())
}
RUST

program by-hand
cat >>"$temp/by-hand/Cargo.toml" <<'TOML'
log = "0.4"
serde = { version = "1", features = ["derive"] }
serde_json = "1"
ureq = { version = "3", default-features = false, features = ["rustls"] }
TOML
cat >"$temp/by-hand/src/main.rs" <<'RUST'
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

#[derive(Deserialize)]
struct Grant {
    access_token: String,
}

#[derive(Deserialize)]
struct Conversation {
    version: String,
}

#[derive(Serialize)]
struct Patch {
    attributes: Value,
    metadata: Metadata,
}

#[derive(Serialize)]
struct Metadata {
    source: &'static str,
}

type Failure = Box<dyn std::error::Error>;

fn main() -> Result<(), Failure> {
    let region = std::env::var("GENESYS_CLOUD_REGION")?;
    let basic = std::env::var("GENESYS_CLOUD_BASIC_AUTH")?;
    let agent = ureq::Agent::new_with_defaults();
    let grant: Grant = json_of(
        agent
            .post(format!("https://login.{region}/oauth/token"))
            .header("Authorization", format!("Basic {basic}"))
            .header("Content-Type", "application/x-www-form-urlencoded")
            .send("grant_type=client_credentials")?,
    )?;
    let authorization = format!("Bearer {}", grant.access_token);
    let id = "00000000-0000-0000-0000-000000000000";
    let url = format!("https://api.{region}/api/v2/conversations/{id}");
    let now: Conversation =
        json_of(agent.get(&url).header("Authorization", &authorization).call()?)?;
    log::debug!("at version {}", now.version);
    let body = serde_json::to_vec(&Patch {
        attributes: json!({ "customer.tier": "premium", "routing.score": 85 }),
        metadata: Metadata { source: "external-integration" },
    })?;
    let after: Conversation = json_of(
        agent
            .patch(format!("{url}/attributes"))
            .header("Authorization", &authorization)
            .header("If-Match", format!("\"{}\"", now.version))
            .header("Content-Type", "application/json")
            .send(&body[..])?,
    )?;
    println!("{}", after.version);
    Ok(())
}

fn json_of<T: serde::de::DeserializeOwned>(
    mut response: ureq::http::Response<ureq::Body>,
) -> Result<T, Failure> {
    Ok(serde_json::from_slice(&response.body_mut().read_to_vec()?)?)
}
RUST

# Downloads must not count as build time.
for name in with-library by-hand; do
    cargo fetch --quiet --manifest-path "$temp/$name/Cargo.toml"
done

# build NAME: prints the milliseconds that a clean build took.
build() {
    local start
    rm -rf "$temp/target"
    start=$(date +%s%N)
    CARGO_TARGET_DIR=$temp/target cargo build --quiet --release \
        --manifest-path "$temp/$1/Cargo.toml" >&2
    echo $((($(date +%s%N) - start) / 1000000))
}

# median of the lines of standard input
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

crates() {
    cargo tree --quiet --edges normal --prefix none --manifest-path "$temp/$1/Cargo.toml" |
        awk 'NF { print $1 }' | sort -u | grep -vxE 'with-library|by-hand|genesys-attributes'
}

declare -A size
for round in $(seq "$rounds"); do
    order="with-library by-hand"
    ((round % 2)) || order="by-hand with-library"
    for name in $order; do
        build "$name" >>"$temp/$name.ms"
        size[$name]=$(stat -c %s "$temp/target/release/$name")
    done
done

more=$((size[with-library] - size[by-hand]))
verdict() { if "$@"; then echo PASS; else echo OVER; fi; }
ours=$(median <"$temp/with-library.ms")
theirs=$(median <"$temp/by-hand.ms")
extra=$(comm -23 <(crates with-library) <(crates by-hand))
count=$(grep -c . <<<"$extra" || true)

printf '%-28s %12s %12s   %-14s %s\n' "" library "by hand" difference budget
printf '%-28s %10d K %10d K   %+-12d K %s\n' "stripped release program" \
    $((size[with-library] / 1024)) $((size[by-hand] / 1024)) $((more / 1024)) \
    "+150 K $(verdict test "$more" -le $((150 * 1024)))"
printf '%-28s %10d ms %9d ms   %-14s %s\n' "clean build, $rounds round(s)" "$ours" "$theirs" \
    "$(awk -v a="$ours" -v b="$theirs" 'BEGIN { printf "%.2fx", a / b }')" \
    "1.25x $(verdict test $((ours * 100)) -le $((theirs * 125)))"
printf '%-28s %12d %12d   %-14s %s\n' "crates, without its own" \
    "$(crates with-library | wc -l)" "$(crates by-hand | wc -l)" "+$count" \
    "+0 $(verdict test "$count" -eq 0)"
if [ -n "$extra" ]; then echo "beyond the program by hand:" $extra; fi
