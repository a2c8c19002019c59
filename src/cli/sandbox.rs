//! `sandbox`: a stand-in for the platform on a port of this machine.

use std::time::Duration;

use genesys_attributes::testing::{Action, CLIENT_ID, CLIENT_SECRET, Fault, Platform};
use serde_json::Value;

use super::options::Sandbox;
use super::{Failure, Run, print, screen};

/// Runs until a signal ends the program. Nothing is kept.
pub(crate) fn run(asked: &Sandbox) -> Run {
    let platform = Platform::new();
    platform.world(|world| {
        world.auto_create = asked.conversations.is_empty();
        world.keep_log = false;
        for id in &asked.conversations {
            world.add(id);
        }
    });
    for (name, every) in &asked.faults {
        platform.script(fault(name).every(*every));
    }
    platform.set_latency(Duration::from_millis(asked.latency));
    let server = platform.serve(asked.port).map_err(|error| {
        Failure::usage(format!(
            "port {} cannot be used ({error}): give another by --port",
            asked.port
        ))
    })?;
    print(&format!(
        "export GENESYS_CLOUD_BASE_URL={}\nexport GENESYS_CLOUD_CLIENT_ID={CLIENT_ID}\nexport \
         GENESYS_CLOUD_CLIENT_SECRET={CLIENT_SECRET}\n",
        server.url()
    ))?;
    screen::note("the sandbox is listening: give these lines to a shell; Ctrl-C ends it");
    loop {
        std::thread::park();
    }
}

fn fault(name: &str) -> Fault {
    match name {
        "conflict" => Fault::on_write(Action::Interfere {
            key: "other.writer".into(),
            value: "was here".into(),
        }),
        "throttle" => Fault::on_api(Action::rate_limited(1)),
        _ => Fault::on_write(Action::ApplyThenStatus {
            status: 503,
            body: Value::Null,
        }),
    }
}
