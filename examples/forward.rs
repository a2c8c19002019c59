//! The whole chain on this machine: updates with a log, a crash before the last outcome is
//! recorded, a forwarder that settles it, and a receiver that verifies each signature.
//!
//! `cargo run --features forward --example forward`

#[path = "../tests/support/sandbox.rs"]
mod sandbox;
#[path = "../tests/support/server.rs"]
mod server;

use std::time::Instant;

use genesys_attributes::audit::AuditFile;
use genesys_attributes::forward::Forwarder;
use genesys_attributes::webhook::Webhook;
use genesys_attributes::{Cancel, Client, Credentials, RateLimit, Region, Update};
use ring::hmac;
use sandbox::{CLIENT_ID, CLIENT_SECRET, Sandbox};
use server::{Resp, Server};

const EVENTS: u64 = 2_000;
/// Thirty zero bytes, in base64.
const SECRET: &str = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let folder = std::env::temp_dir().join(format!("forward-example-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let log = folder.join("audit.jsonl");
    let platform = Sandbox::start();
    platform.world(|world| world.auto_create = true);
    let builder = || -> genesys_attributes::Result<_> {
        let credentials = Credentials::new(CLIENT_ID, CLIENT_SECRET);
        let builder = Client::builder(Region::parse("eu-west-1")?, credentials);
        Ok(builder
            .base_url(platform.url())
            .rate_limit(RateLimit::unlimited()))
    };

    let client = builder()?
        .audit(AuditFile::open(&log)?)
        .audit_values(true)
        .build()?;
    let begun = Instant::now();
    for n in 0..EVENTS {
        let _ = client.update(&Update::conversation(format!("c-{}", n % 7)).set("n", n))?;
    }
    println!("{EVENTS} updates in {:?}", begun.elapsed());
    drop(client);
    // As if the process had died before the last outcome was written.
    let text = std::fs::read_to_string(&log)?;
    let kept = text.trim_end().rfind('\n').map_or(0, |end| end + 1);
    std::fs::write(&log, text.get(..kept).unwrap_or_default())?;

    let receiver = Server::start(|req| {
        let field = |name| req.header(name).unwrap_or_default();
        let signed = [field("webhook-id"), field("webhook-timestamp"), ""].join(".");
        let key = hmac::Key::new(hmac::HMAC_SHA256, &[0; 30]);
        let tag = hmac::sign(&key, &[signed.as_bytes(), req.body].concat());
        match field("webhook-signature") == format!("v1,{}", base64(tag.as_ref())) {
            true => Resp::empty(204),
            false => Resp::empty(401),
        }
    });
    let webhook = Webhook::new(receiver.url())?.secret(SECRET)?;
    let begun = Instant::now();
    let report = Forwarder::new(&log, webhook).run(&Cancel::new())?;
    println!("{} delivered in {:?}", report.delivered, begun.elapsed());
    let webhook = Webhook::new(receiver.url())?.secret(SECRET)?;
    let report = Forwarder::new(&log, webhook)
        .settle(builder()?.build()?)
        .run(&Cancel::new())?;
    println!(
        "settled {} and delivered {}",
        report.settled, report.delivered
    );
    std::fs::remove_dir_all(&folder)?;
    Ok(())
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::new();
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let group = at(0) << 16 | at(1) << 8 | at(2);
        for i in 0..4 {
            let digit = DIGITS[(group >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    out
}
