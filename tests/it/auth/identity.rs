//! Whose token it is, and what nobody sees of it.

use super::*;

#[test]
fn login_errors_show_no_secret() {
    let hidden = [CLIENT_SECRET, BASIC, "token-1", "Bearer", "Basic"];
    let mut errors = Vec::new();
    let ends: Vec<Response> = vec![
        Response::new(400),
        json_response(400, &refusal("invalid_client", "no")),
        Response::new(403),
        Response::new(429).with_header("Retry-After", "999"),
        Response::new(500),
        Response::new(200).with_body("<html>"),
        Response::new(302),
    ];
    for end in &ends {
        let fake = Fake::new();
        fake.answer("POST", end.clone());
        let client = fake.builder().retry(once()).build().unwrap();
        errors.push(client.update(&update("c-1")).unwrap_err());
    }
    for end in &ends {
        let fake = Fake::new();
        fake.token().answer("GET", end.clone());
        let client = fake.builder().retry(once()).build().unwrap();
        errors.push(
            client
                .update(&Update::secure("c-1").set("k", "v"))
                .unwrap_err(),
        );
    }
    for method in ["POST", "GET"] {
        for sent in [Sent::No, Sent::Maybe] {
            let fake = Fake::new();
            if method == "GET" {
                fake.token();
            }
            fake.fault(method, ErrorKind::Transport, sent);
            let client = fake.builder().retry(once()).build().unwrap();
            errors.push(
                client
                    .update(&Update::secure("c-1").set("k", "v"))
                    .unwrap_err(),
            );
        }
    }
    assert_eq!(errors.len(), 2 * ends.len() + 4);
    for error in errors {
        let mut shown = format!("{error} {error:?} {error:#?}");
        shown += &serde_json::to_string(&error).unwrap();
        let mut source = error.source();
        while let Some(cause) = source {
            shown += &format!("{cause} {cause:?}");
            source = cause.source();
        }
        for secret in hidden {
            assert!(!shown.contains(secret), "{secret} in {shown}");
        }
    }
}

#[test]
fn credentials_debug_shows_no_secret() {
    let fake = Fake::new();
    fake.token().status("PATCH", 202);
    let client = fake.client();
    client.update(&update("c-1")).unwrap();
    let given = Credentials::access_token("given-t0ken");
    let id = Credentials::new(CLIENT_ID, CLIENT_SECRET);
    let builder = fake.builder();
    let mut shown = format!("{client:?} {client:#?} {builder:?} {builder:#?}");
    shown += &format!("{given:?} {given:#?} {id:?} {id:#?}");
    for secret in [CLIENT_SECRET, BASIC, "token-1", "given-t0ken"] {
        assert!(!shown.contains(secret), "{secret} in {shown}");
    }
    assert!(shown.contains(CLIENT_ID) && shown.contains("[redacted]"));
}

#[test]
fn verify_credentials_reads_token_owner() {
    let fake = Fake::new();
    fake.token_for(600).takes(secs(1)).get_body(json!({
        "organization": { "id": "o-1", "name": "Org" },
        "OAuthClient": { "id": "client-id", "name": "Sync" },
    }));
    let identity = fake.client().verify_credentials().unwrap();
    assert_eq!(fake.lines(), ["POST /oauth/token", "GET /api/v2/tokens/me"]);
    assert_eq!(identity.organization_id.as_deref(), Some("o-1"));
    assert_eq!(identity.organization_name.as_deref(), Some("Org"));
    assert_eq!(identity.client_id.as_deref(), Some("client-id"));
    assert_eq!(identity.client_name.as_deref(), Some("Sync"));
    assert_eq!(
        identity
            .expires_at
            .map(genesys_attributes::clock::rfc3339)
            .as_deref(),
        Some("2026-01-01T00:10:00.000Z")
    );
}

#[test]
fn given_token_has_no_known_expiry() {
    let fake = Fake::new();
    fake.get_body(json!({}));
    let client = fake.builder_with_token().build().unwrap();
    let identity = client.verify_credentials().unwrap();
    assert_eq!(identity.expires_at, None);
    assert_eq!(identity.organization_id, None);
    assert_eq!(fake.seen()[0].authorization(), "Bearer given");
}

#[test]
fn verify_credentials_refused_is_auth_error() {
    let fake = Fake::new();
    fake.token().status("GET", 401).token().status("GET", 401);
    let error = fake.client().verify_credentials().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth);
    assert_eq!(fake.methods(), "POST GET POST GET");

    let fake = Fake::new();
    fake.answer("POST", json_response(401, &refusal("invalid_client", "x")));
    let error = fake.client().verify_credentials().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Auth);
}
