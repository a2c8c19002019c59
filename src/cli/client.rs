//! The client that the settings and the options make.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use genesys_attributes::validate::Schema;
use genesys_attributes::webhook::Webhook;
use genesys_attributes::{Client, ClientBuilder, Error, Settings};
use serde_json::{Map, Value, json};

use super::files::{Files, is_standard_input};
use super::kinds::Kind;
use super::options::{ClientOptions, Options};
use super::{Failure, kinds, profile, screen};

/// The variables that settings may be given by.
const VARIABLES: &[&str] = &[
    "GENESYS_CLOUD_REGION",
    "GENESYS_CLOUD_CLIENT_ID",
    "GENESYS_CLOUD_CLIENT_SECRET",
    "GENESYS_CLOUD_BASE_URL",
    "GENESYS_CLOUD_LOGIN_URL",
    "GENESYSCLOUD_REGION",
    "GENESYSCLOUD_OAUTHCLIENT_ID",
    "GENESYSCLOUD_OAUTHCLIENT_SECRET",
    "GENESYSCLOUD_ACCESS_TOKEN",
];

/// The fields of the settings that say who logs in, and where.
const IDENTITY: [&str; 5] = [
    "region",
    "clientId",
    "clientSecret",
    "accessToken",
    "baseUrl",
];

/// The fields of the settings that name files of certificates and keys.
const PEM_FILES: [&str; 3] = [
    "rootCertificatesFile",
    "clientCertificateFile",
    "clientKeyFile",
];

/// What the client is made from: read, and nothing of it opened yet.
pub(crate) struct Config<'a> {
    options: &'a ClientOptions,
    /// The settings as JSON, with the options laid over them.
    settings: Map<String, Value>,
    /// What takes the place of the environment.
    variables: Option<HashMap<String, String>>,
    /// The files of the settings and credentials, for errors.
    from: Vec<String>,
}

impl<'a> Config<'a> {
    pub(crate) fn read(options: &'a Options) -> Result<Config<'a>, Failure> {
        let options = &options.client;
        let source = &options.source;
        let is_stdin = |path: &Option<PathBuf>| path.as_deref().is_some_and(is_standard_input);
        if is_stdin(&source.credentials) && is_stdin(&source.named.settings) {
            return Err(Failure::usage(
                "standard input can be the credentials or the settings, not both",
            ));
        }
        let mut config = Config {
            options,
            settings: Map::new(),
            variables: None,
            from: Vec::new(),
        };
        if let Some(path) = &source.named.settings {
            let text = secret_text(path, "settings")?;
            config.from.push(shown(path));
            // The library's error names the field that is wrong.
            let checked = Settings::from_json(&text);
            checked.map_err(|error| config.failed(error)).map(drop)?;
            config.settings = serde_json::from_str(&text).unwrap_or_default();
        }
        let identity = |name: &&&str| config.settings.contains_key(**name);
        let given = IDENTITY.iter().find(identity).copied();
        for option in [
            source.credentials.as_ref().map(|_| "--credentials"),
            source.profile.as_ref().map(|_| "--profile"),
        ] {
            if let (Some(name), Some(option)) = (given, option) {
                return Err(Failure::usage(format!(
                    "{option} and the field {name} of the settings both say who logs in: leave one \
                     of them out"
                )));
            }
        }
        if let Some(path) = &source.credentials {
            let text = secret_text(path, "credentials")?;
            config.from.push(shown(path));
            let (variables, warnings) =
                variables_of(&text, &shown(path)).map_err(Failure::usage)?;
            for warning in warnings {
                screen::warn(&warning);
            }
            config.variables = Some(variables);
        }
        if let Some(name) = &source.profile {
            let (path, fields) = profile::read(name)?;
            config.from.push(shown(&path));
            config.settings.extend(fields);
        }
        config.lay_over()?;
        Ok(config)
    }

    /// Lays the options over the settings.
    fn lay_over(&mut self) -> Result<(), Failure> {
        let ClientOptions { source, guards, .. } = self.options;
        if let Some(rate) = source.rate {
            self.settings.insert("ratePerMinute".into(), rate.into());
        }
        if let Some(seconds) = source.timeout {
            self.set("retry", "deadlineSeconds", seconds);
        }
        for (option, field, path) in [
            (
                "--client-certificate",
                "clientCertificateFile",
                &source.client_certificate,
            ),
            ("--client-key", "clientKeyFile", &source.client_key),
        ] {
            if let Some(path) = path {
                let path = path.to_str().ok_or_else(|| {
                    Failure::usage(format!(
                        "the file name of {option} is not UTF-8: choose another"
                    ))
                })?;
                self.settings.insert(field.into(), path.into());
            }
        }
        if guards.refuse_ended {
            self.settings
                .insert("endedConversations".into(), "refuse".into());
        }
        if let Some(path) = &guards.audit {
            if self.audit().is_some() {
                return Err(Failure::usage(
                    "--audit and audit.file of the settings both name an audit file: leave one of \
                     them out",
                ));
            }
            let path = path.to_str().ok_or_else(|| {
                Failure::usage("the file name of --audit is not UTF-8: choose another")
            })?;
            self.set("audit", "file", path);
        }
        for (option, field, asked) in [
            ("--audit-strict", "strict", guards.audit_strict),
            ("--audit-values", "values", guards.audit_values),
        ] {
            if asked && self.audit().is_none() {
                return Err(Failure::usage(format!(
                    "{option} needs --audit FILE, or audit.file in the settings"
                )));
            }
            if asked {
                self.set("audit", field, true);
            }
        }
        Ok(())
    }

    /// Sets a field of an object inside of the settings.
    fn set(&mut self, object: &str, field: &str, value: impl Into<Value>) {
        self.settings.entry(object).or_insert(Value::Null)[field] = value.into();
    }

    fn field(&self, at: &str) -> Option<&Value> {
        let mut names = at.split('.');
        let first = self.settings.get(names.next()?);
        names.fold(first, |value, name| value?.get(name))
    }

    /// The audit file of a client that writes.
    fn audit(&self) -> Option<PathBuf> {
        self.field("audit.file")?.as_str().map(PathBuf::from)
    }

    /// True if nothing may be written whose audit record cannot be.
    pub(crate) fn is_strict(&self) -> bool {
        self.field("audit.strict") == Some(&Value::Bool(true))
    }

    /// The files that a client reads and writes; none may have a second purpose.
    pub(crate) fn files(&self) -> Result<Files, Failure> {
        let ClientOptions { source, checks, .. } = self.options;
        let file = |field| self.field(field).and_then(Value::as_str).map(Path::new);
        Files::default()
            .read("the credentials file", source.credentials.as_deref())
            .and_then(|files| files.read("the settings file", source.named.settings.as_deref()))
            .and_then(|files| files.read("--schema-file", checks.schema_file.as_deref()))
            .and_then(|files| files.read(PEM_FILES[0], file(PEM_FILES[0])))
            .and_then(|files| files.read(PEM_FILES[1], file(PEM_FILES[1])))
            .and_then(|files| files.read(PEM_FILES[2], file(PEM_FILES[2])))
            .and_then(|files| files.written("the audit file", self.audit().as_deref()))
            .map_err(Failure::usage)
    }

    /// Refuses an audit file that is there already and is none.
    pub(crate) fn check_audit(&self) -> Result<(), Failure> {
        let audit = self.audit();
        kinds::check("the audit", audit.as_deref(), Kind::Audit).map_err(Failure::usage)
    }

    /// A client that writes.
    pub(crate) fn client(self, workers: usize) -> Result<Client, Failure> {
        self.built(workers)
    }

    /// A client that only reads: it opens no audit file.
    pub(crate) fn reader(mut self) -> Result<Client, Failure> {
        self.settings.remove("audit");
        self.built(1)
    }

    /// A client that only checks updates: it needs no credentials and opens nothing.
    pub(crate) fn checker(&self) -> Result<Client, Failure> {
        let mut settings = self.settings.clone();
        for name in ["audit", "loginUrl"]
            .iter()
            .chain(&PEM_FILES)
            .chain(&IDENTITY)
        {
            settings.remove(*name);
        }
        for (name, value) in [
            ("clientId", json!("none")),
            ("clientSecret", json!("none")),
            ("baseUrl", json!("http://127.0.0.1:1")),
            ("proxy", json!(false)),
        ] {
            settings.insert(name.into(), value);
        }
        Config {
            options: self.options,
            settings,
            variables: None,
            from: self.from.clone(),
        }
        .built(1)
    }

    /// The webhook of the settings, at `url` if that is given.
    pub(crate) fn webhook(&self, url: Option<&str>) -> Result<Option<Webhook>, Failure> {
        let text = Value::Object(self.settings.clone()).to_string();
        let settings = Settings::from_json(&text);
        let webhook = settings.and_then(|settings| Webhook::from_settings(&settings, url));
        webhook.map_err(|error| self.failed(error))
    }

    fn built(mut self, workers: usize) -> Result<Client, Failure> {
        let idle = self
            .settings
            .entry("maxIdleConnections")
            .or_insert(Value::Null);
        if idle.is_null() {
            *idle = workers.max(4).into();
        }
        let schema = self.schema()?;
        let text = Value::Object(std::mem::take(&mut self.settings)).to_string();
        let variables = self.variables.take();
        let built = Settings::from_json(&text)
            .and_then(|settings| match &variables {
                Some(all) => settings.builder_from_variables(|name| Ok(all.get(name).cloned())),
                None => settings.builder(),
            })
            .map(|builder| match schema {
                Some(schema) => builder.schema(schema),
                None => builder,
            })
            .and_then(ClientBuilder::build);
        built.map_err(|error| self.failed(error))
    }

    /// The caller's own schema, if the options name its file.
    fn schema(&self) -> Result<Option<Schema>, Failure> {
        let Some(path) = &self.options.checks.schema_file else {
            return Ok(None);
        };
        let text = text_of(path, "schema")?;
        let schema = Schema::from_json(&text).map_err(|error| {
            Failure::usage(format!(
                "{error} (the schema is that of {})",
                path.display()
            ))
        })?;
        Ok(Some(schema))
    }

    /// Names the files that the settings come from.
    fn failed(&self, error: Error) -> Failure {
        let mut failure = Failure::from(error);
        if !self.from.is_empty() {
            failure.message += &format!(" (the settings are from {})", self.from.join(" and "));
        }
        failure
    }
}

/// The text of a file that may hold secrets. Warns if other users can read it.
pub(crate) fn secret_text(path: &Path, what: &str) -> Result<String, Failure> {
    let text = text_of(path, what)?;
    warn_of_readers(path, what);
    Ok(text)
}

/// The text of a file, or of standard input for `-`.
fn text_of(path: &Path, what: &str) -> Result<String, Failure> {
    let mut bytes = Vec::new();
    let read = match path.as_os_str() == "-" {
        true => io::stdin().lock().read_to_end(&mut bytes),
        false => File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    let shown = shown(path);
    read.map_err(|e| Failure::usage(format!("the {what} file {shown} cannot be read: {e}")))?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::usage(format!("the {what} file {shown} is not UTF-8")))?;
    Ok(match text.strip_prefix('\u{FEFF}') {
        Some(rest) => rest.to_owned(),
        None => text,
    })
}

fn shown(path: &Path) -> String {
    match path.as_os_str() == "-" {
        true => "standard input".into(),
        false => path.display().to_string(),
    }
}

#[cfg(unix)]
pub(crate) fn warn_of_readers(path: &Path, what: &str) {
    use std::os::unix::fs::PermissionsExt;
    let readable = std::fs::metadata(path)
        .is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o044 != 0);
    if readable {
        let shown = path.display();
        screen::warn(&format!(
            "other users can read the {what} file {shown}: chmod 600 {shown}"
        ));
    }
}

#[cfg(not(unix))]
pub(crate) fn warn_of_readers(_: &Path, _: &str) {}

/// `NAME=VALUE` lines, as a shell would read them: `export`, quotes and comments are understood.
/// A line may hold a secret, so no more of it is told than its number and a name that looks like
/// one of a variable.
fn variables_of(text: &str, shown: &str) -> Result<(HashMap<String, String>, Vec<String>), String> {
    let (mut variables, mut warnings) = (HashMap::new(), Vec::new());
    for (index, line) in text.lines().enumerate() {
        let at = format!("line {} of {shown}", index + 1);
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let line = line.strip_prefix("export ").unwrap_or(line);
        let (name, value) = line
            .split_once('=')
            .ok_or_else(|| format!("{at} is not NAME=VALUE"))?;
        let name = name.trim();
        if !VARIABLES.contains(&name) {
            let is_shown = name.contains('_')
                && name.len() <= 64
                && name
                    .bytes()
                    .all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_');
            let what = if is_shown {
                format!("the name {name}")
            } else {
                "a name".to_owned()
            };
            let distance = |known: &&&str| strsim::osa_distance(name, known);
            let near = VARIABLES.iter().min_by_key(distance);
            if let Some(meant) = near.filter(|known| distance(known) <= known.len() / 3) {
                return Err(format!(
                    "{at} has {what}, which is not known: is it {meant}?"
                ));
            }
            warnings.push(format!(
                "{at} has {what}, which is not known: it is ignored"
            ));
            continue;
        }
        let value = value_of(value.trim()).map_err(|problem| format!("{at} {problem}"))?;
        variables.insert(name.to_owned(), value);
    }
    Ok((variables, warnings))
}

/// A value without its quotes and the comment behind it.
fn value_of(text: &str) -> Result<String, &'static str> {
    for quote in ['"', '\''] {
        if let Some(rest) = text.strip_prefix(quote) {
            let (value, rest) = rest
                .split_once(quote)
                .ok_or("has a quote without its end")?;
            let rest = rest.trim();
            return match rest.is_empty() || rest.starts_with('#') {
                true => Ok(value.to_owned()),
                false => Err("goes on after its quoted value"),
            };
        }
    }
    let value = text
        .split_once(" #")
        .map_or(text, |(value, _)| value)
        .trim();
    let value = if value.starts_with('#') { "" } else { value };
    match value.contains(char::is_whitespace) {
        true => Err("has a value with spaces: put it in quotes"),
        false => Ok(value.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_read_as_a_shell_would() {
        let text = "# all\r\nexport GENESYS_CLOUD_REGION=\"eu-west-1\" # where\n\n\
                    GENESYS_CLOUD_CLIENT_ID = 'id # 1'\nGENESYS_CLOUD_CLIENT_SECRET=a=b# # end\n\
                    OTHER_NAME=1\nc2VjcmV0=\n";
        let (found, warnings) = variables_of(text, "F").unwrap();
        assert_eq!(found["GENESYS_CLOUD_REGION"], "eu-west-1");
        assert_eq!(found["GENESYS_CLOUD_CLIENT_ID"], "id # 1");
        assert_eq!(found["GENESYS_CLOUD_CLIENT_SECRET"], "a=b#");
        assert_eq!(
            warnings,
            [
                "line 6 of F has the name OTHER_NAME, which is not known: it is ignored",
                "line 7 of F has a name, which is not known: it is ignored"
            ]
        );
    }

    #[test]
    fn credentials_that_are_wrong_are_told_by_line_without_their_text() {
        for (text, problem) in [
            ("\nhunter2\n", "line 2 of F is not NAME=VALUE"),
            (
                "GENESYS_CLOUD_CLIENTID=hunter2\n",
                "is it GENESYS_CLOUD_CLIENT_ID?",
            ),
            ("GENESYS_CLOUD_REGION=\"hunter2\n", "quote without its end"),
            ("GENESYS_CLOUD_REGION='a' hunter2\n", "goes on after"),
            ("GENESYS_CLOUD_REGION=a hunter2\n", "in quotes"),
        ] {
            let error = variables_of(text, "F").unwrap_err();
            assert!(
                error.contains(problem) && error.contains(" of F"),
                "{error}"
            );
            assert!(!error.contains("hunter2"), "{error}");
        }
    }
}
