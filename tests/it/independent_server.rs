//! The requests as another HTTP implementation reads them (hyper, under mockito): our own test servers are lenient, and were
//! written by who wrote the client. One update of each kind; what is sent beyond the expected is a 501, and fails.

use genesys_attributes::{Client, Credentials, Outcome, Region, Update};
use mockito::{Matcher, Mock, Server, ServerGuard};
use serde_json::{Value, json};

const C: &str = "/api/v2/conversations/c-1";

/// A server that knows the login, and a client of it.
fn start() -> (ServerGuard, Client, Mock) {
    let mut server = Server::new();
    let login = server
        .mock("POST", "/oauth/token")
        // base64 of id:secret
        .match_header("authorization", "Basic aWQ6c2VjcmV0")
        .match_header("content-type", "application/x-www-form-urlencoded")
        .match_body("grant_type=client_credentials")
        .with_body(r#"{"access_token":"t-1","token_type":"bearer","expires_in":86400}"#)
        .expect(1)
        .create();
    let region = Region::parse("eu-west-1").unwrap();
    let client = Client::builder(region, Credentials::new("id", "secret"))
        .base_url(server.url())
        .no_proxy()
        .build()
        .unwrap();
    (server, client, login)
}

fn get(server: &mut Server, path: &str, body: Value) -> Mock {
    server
        .mock("GET", format!("{C}{path}").as_str())
        .match_header("authorization", "Bearer t-1")
        .match_body("")
        .with_body(body.to_string())
        .expect(1)
        .create()
}

/// A write without a precondition in its head, unless one is given.
fn write(server: &mut Server, method: &str, path: &str, if_match: Matcher, body: Value) -> Mock {
    server
        .mock(method, format!("{C}{path}").as_str())
        .match_header("authorization", "Bearer t-1")
        .match_header("content-type", "application/json")
        .match_header("if-match", if_match)
        .match_body(Matcher::PartialJson(body))
        .with_status(202)
        .expect(1)
        .create()
}

#[track_caller]
fn applied(client: &Client, update: &Update, mocks: &[Mock]) {
    let receipt = client.update(update).unwrap();
    assert_eq!(receipt.outcome, Outcome::Applied);
    mocks.iter().for_each(Mock::assert);
}

#[test]
fn independent_server_conversation_update_is_understood() {
    let (mut server, client, login) = start();
    let read = get(&mut server, "", json!({"version": "7"}));
    let if_match = Matcher::Exact("\"7\"".into());
    let body = json!({"attributes": {"tier": "gold"}});
    let write = write(&mut server, "PATCH", "/attributes", if_match, body);
    let update = Update::conversation("c-1").set("tier", "gold");
    applied(&client, &update, &[login, read, write]);
}

#[test]
fn independent_server_participant_update_is_understood() {
    let (mut server, client, login) = start();
    let body = json!({"attributes": {"tier": "gold", "score": "85"}});
    let path = "/participants/p-1/attributes";
    let write = write(&mut server, "PATCH", path, Matcher::Missing, body);
    let update = Update::participant("c-1", "p-1").set("tier", "gold");
    applied(&client, &update.set("score", 85), &[login, write]);
}

#[test]
fn independent_server_secure_update_is_understood() {
    let (mut server, client, login) = start();
    let stored = json!({"attributes": {"kept": "k"}, "version": 7});
    let read = get(&mut server, "/secureattributes", stored);
    let body = json!({"attributes": {"kept": "k", "iban": "IE1"}, "version": 7});
    let path = "/secureattributes";
    let write = write(&mut server, "PUT", path, Matcher::Missing, body);
    let update = Update::secure("c-1").set("iban", "IE1");
    applied(&client, &update, &[login, read, write]);
}

#[test]
fn independent_server_custom_update_is_understood() {
    let (mut server, client, login) = start();
    let stored = json!({"id": "r-1", "divisions": ["d-1"], "version": 7, "customAttributes": {}});
    let read = get(&mut server, "/customattributes/r-1", stored);
    let body =
        json!({"id": "r-1", "divisions": ["d-1"], "version": 7, "customAttributes": {"tier": 3}});
    let path = "/customattributes";
    let write = write(&mut server, "PATCH", path, Matcher::Missing, body);
    let update = Update::custom("c-1", "r-1").set("tier", 3);
    applied(&client, &update, &[login, read, write]);
}
