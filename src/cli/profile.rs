//! A profile of the platform's own command line, out of `~/.gc/config.toml`.

use std::path::PathBuf;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::Failure;
use super::client::secret_text;

/// The keys that say something to this program; that tool ignores unknown ones, too.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Profile {
    environment: Option<String>,
    client_credentials: Option<String>,
    client_secret: Option<String>,
    access_token: Option<String>,
    proxy_protocol: Option<String>,
    proxy_host: Option<String>,
    proxy_port: Option<toml::Value>,
    proxy_username: Option<String>,
    proxy_password: Option<String>,
}

/// The settings of a profile, and the file that it is in.
pub(crate) fn read(name: &str) -> Result<(PathBuf, Map<String, Value>), Failure> {
    let home = std::env::home_dir().ok_or_else(|| {
        Failure::usage("--profile needs the home directory: set the variable HOME")
    })?;
    let path = home.join(".gc").join("config.toml");
    let text = secret_text(&path, "profile")?;
    let fields = fields(&text, name);
    let fields = fields.map_err(|problem| {
        Failure::usage(format!("the profile file {} {problem}", path.display()))
    })?;
    Ok((path, fields))
}

/// No error holds more of the text than names of profiles: it has secrets.
fn fields(text: &str, name: &str) -> Result<Map<String, Value>, String> {
    let all: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map_or(1, |before| before.matches('\n').count() + 1);
        format!("is not TOML (line {line})")
    })?;
    let named = all.iter().find(|(key, _)| key.eq_ignore_ascii_case(name));
    let Some((_, section)) = named else {
        let known: Vec<&str> = all.keys().map(String::as_str).collect();
        return Err(format!(
            "has no profile of that name: it has {}",
            known.join(", ")
        ));
    };
    let profile: Profile = section
        .clone()
        .try_into()
        .map_err(|_| "has a value in this profile that is no text: put it in quotes".to_owned())?;
    let given = |text: Option<String>| text.filter(|text| !text.trim().is_empty());
    let mut fields = Map::new();
    let region = given(profile.environment).ok_or("has no environment in this profile")?;
    fields.insert("region".into(), region.into());
    match (
        given(profile.client_credentials),
        given(profile.client_secret),
    ) {
        (Some(id), Some(secret)) => {
            fields.insert("clientId".into(), id.into());
            fields.insert("clientSecret".into(), secret.into());
        }
        _ => {
            let token = given(profile.access_token).ok_or(
                "has neither client_credentials and client_secret nor access_token in this profile",
            )?;
            fields.insert("accessToken".into(), token.into());
        }
    }
    if let Some(host) = given(profile.proxy_host) {
        let scheme = given(profile.proxy_protocol).unwrap_or_else(|| "http".into());
        let login = given(profile.proxy_username).map(|user| {
            let password = profile.proxy_password.unwrap_or_default();
            format!("{}:{}@", escaped(&user), escaped(&password))
        });
        let port = match profile.proxy_port {
            Some(toml::Value::String(port)) => format!(":{port}"),
            Some(toml::Value::Integer(port)) => format!(":{port}"),
            _ => String::new(),
        };
        let login = login.unwrap_or_default();
        fields.insert(
            "proxy".into(),
            json!(format!("{scheme}://{login}{host}{port}")),
        );
    }
    Ok(fields)
}

/// What an address may not hold in a name or a password, percent-encoded.
fn escaped(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            true => out.push(char::from(byte)),
            false => out += &format!("%{byte:02X}"),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profile_becomes_settings_and_its_unknown_keys_are_ignored() {
        let text = "[DEFAULT]\nenvironment = \"mypurecloud.ie\"\nclient_credentials = \"id\"\n\
                    client_secret = \"hunter2\"\ngrant_type = 7\naccess_token = \"\"\n\
                    proxy_host = \"proxy.example\"\nproxy_port = 3128\nproxy_username = \"a b\"\n\
                    [eu]\nenvironment = \"mypurecloud.de\"\naccess_token = \"token\"\n";
        let found = fields(text, "default").unwrap();
        let expected = json!({ "region": "mypurecloud.ie", "clientId": "id", "clientSecret": "hunter2",
            "proxy": "http://a%20b:@proxy.example:3128" });
        assert_eq!(Value::from(found), expected);
        let found = fields(text, "eu").unwrap();
        assert_eq!(
            Value::from(found),
            json!({ "region": "mypurecloud.de", "accessToken": "token" })
        );
    }

    #[test]
    fn wrong_profile_is_told_without_its_secrets() {
        for (text, problem) in [
            ("[a]\nclient_secret = hunter2\n", "is not TOML (line 2)"),
            ("[b]\nclient_secret = \"hunter2\"\n", "it has b"),
            ("[a]\nclient_secret = \"hunter2\"\n", "no environment"),
            (
                "[a]\nenvironment = \"x\"\nclient_secret = \"hunter2\"\n",
                "neither client_credentials",
            ),
            (
                "[a]\nenvironment = 3\nclient_secret = \"hunter2\"\n",
                "put it in quotes",
            ),
        ] {
            let error = fields(text, "a").unwrap_err();
            assert!(
                error.contains(problem) && !error.contains("hunter2"),
                "{error}"
            );
        }
    }
}
