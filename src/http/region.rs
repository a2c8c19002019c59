//! The regions of Genesys Cloud: a name or domain in, the login and API addresses out.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::error::text::did_you_mean;
use crate::error::{Error, ErrorKind, Result, clip, one_line};
use crate::http::address::host_of;

/// AWS region and domain, as in the official JavaScript SDK, CLI and Terraform provider.
const TABLE: [(&str, &str); 18] = [
    ("us-east-1", "mypurecloud.com"),
    ("us-east-2", "use2.us-gov-pure.cloud"),
    ("us-west-2", "usw2.pure.cloud"),
    ("ca-central-1", "cac1.pure.cloud"),
    ("mx-central-1", "mxc1.pure.cloud"),
    ("sa-east-1", "sae1.pure.cloud"),
    ("eu-west-1", "mypurecloud.ie"),
    ("eu-west-2", "euw2.pure.cloud"),
    ("eu-central-1", "mypurecloud.de"),
    ("eu-central-2", "euc2.pure.cloud"),
    ("eusc-de-east-1", "edee1.eusc-pure.cloud"),
    ("me-central-1", "mec1.pure.cloud"),
    ("ap-south-1", "aps1.pure.cloud"),
    ("ap-southeast-1", "apse1.pure.cloud"),
    ("ap-southeast-2", "mypurecloud.com.au"),
    ("ap-northeast-1", "mypurecloud.jp"),
    ("ap-northeast-2", "apne2.pure.cloud"),
    ("ap-northeast-3", "apne3.pure.cloud"),
];

/// A region of Genesys Cloud.
///
/// ```
/// use genesys_attributes::Region;
///
/// let region = Region::parse("eu_west_1")?;
/// assert_eq!(region.api_url(), "https://api.mypurecloud.ie");
/// assert_eq!(region, Region::parse("mypurecloud.ie")?);
/// # Ok::<(), genesys_attributes::Error>(())
/// ```
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Region {
    domain: Cow<'static, str>,
}

impl Region {
    /// Finds a region by its AWS name (`eu-west-1` or `eu_west_1`), its domain (`mypurecloud.ie`)
    /// or the address of one of its hosts (`https://api.mypurecloud.ie`, `login.…`, `apps.…`), in
    /// any case.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for any other text, with the name that was probably meant and all
    /// choices. A domain that is not in the
    /// table is made with [`Region::custom`].
    pub fn parse(name: &str) -> Result<Region> {
        let wanted = name.trim().to_ascii_lowercase();
        let wanted = host_of(&wanted).trim_end_matches('.');
        let host = ["api.", "apps.", "login."]
            .iter()
            .find_map(|label| wanted.strip_prefix(label));
        let wanted = host.unwrap_or(wanted);
        let as_aws = wanted.replace('_', "-");
        for (aws, domain) in TABLE {
            if as_aws == aws || wanted == domain {
                return Ok(Region {
                    domain: Cow::Borrowed(domain),
                });
            }
        }
        let names = Vec::from_iter(TABLE.iter().flat_map(|(aws, domain)| [*aws, *domain]));
        let choices: Vec<String> = TABLE
            .iter()
            .map(|(aws, domain)| format!("{aws} ({domain})"))
            .collect();
        Err(Error::new(
            ErrorKind::Config,
            format!(
                "unknown region {:?}{}: use one of {}",
                one_line(&clip(name, 80)),
                did_you_mean(wanted, &names),
                choices.join(", ")
            ),
        ))
    }

    /// The region whose API has this address.
    pub(crate) fn of_api(url: &str) -> Option<Region> {
        let host = host_of(url).to_ascii_lowercase();
        let domain = host.strip_prefix("api.")?;
        Region::parse(domain)
            .ok()
            .filter(|region| region.domain == domain)
    }

    /// A region of a domain that is not in the table: its API is expected at
    /// `https://api.{domain}`, its login at `https://login.{domain}`.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] when `domain` is not a plain host name.
    pub fn custom(domain: &str) -> Result<Region> {
        let label = |l: &str| {
            !l.is_empty()
                && l.len() <= 63
                && !l.starts_with('-')
                && !l.ends_with('-')
                && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        if domain.len() <= 240 && domain.contains('.') && domain.split('.').all(label) {
            Ok(Region {
                domain: Cow::Owned(domain.to_ascii_lowercase()),
            })
        } else {
            Err(Error::config(
                "region",
                format!(
                    "{:?} is not a domain such as \"mypurecloud.com\"",
                    clip(domain, 80)
                ),
            ))
        }
    }

    /// The names and domains that [`Region::parse`] knows.
    pub fn known() -> impl Iterator<Item = (&'static str, &'static str)> {
        TABLE.into_iter()
    }

    /// The domain, such as `mypurecloud.com`.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The base of the Platform API, such as `https://api.mypurecloud.com`.
    pub fn api_url(&self) -> String {
        format!("https://api.{}", self.domain)
    }

    /// The base of the login service, such as `https://login.mypurecloud.com`.
    pub fn login_url(&self) -> String {
        format!("https://login.{}", self.domain)
    }
}

impl fmt::Display for Region {
    /// Writes the domain, which [`Region::parse`] reads for a region of the table.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.domain)
    }
}

impl FromStr for Region {
    type Err = Error;

    /// As [`Region::parse`].
    fn from_str(name: &str) -> Result<Region> {
        Region::parse(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn region_rows_are_found_by_each_spelling() {
        for (aws, domain) in Region::known() {
            for name in [
                aws.to_owned(),
                aws.replace('-', "_"),
                domain.to_owned(),
                domain.to_ascii_uppercase(),
                format!(" {aws} "),
                format!("https://api.{domain}"),
                format!("https://API.{domain}/api/v2"),
                format!("http://login.{domain}:443/"),
                format!("apps.{domain}"),
                format!("login.{domain}."),
            ] {
                let region = Region::parse(&name).unwrap();
                assert_eq!(region.domain(), domain, "{name}");
                assert_eq!(region.api_url(), format!("https://api.{domain}"));
                assert_eq!(region.login_url(), format!("https://login.{domain}"));
            }
            let found = Region::of_api(&format!("https://api.{domain}/")).unwrap();
            assert_eq!(found.domain(), domain);
            for other in [
                format!("https://{domain}"),
                format!("https://login.{domain}"),
                format!("https://api.api.{domain}"),
                format!("https://api.{domain}.example"),
            ] {
                assert_eq!(Region::of_api(&other), None, "{other}");
            }
        }
        assert_eq!(Region::known().count(), 18);
    }

    #[test]
    fn region_unknown_names_choices() {
        for (name, meant) in [
            ("", None),
            ("eu-west-9", Some("eu-west-1")),
            ("EU_WETS_1", Some("eu-west-1")),
            ("https://api.mypurecloud.it", Some("mypurecloud.ie")),
            ("login.mypurecluod.de/", Some("mypurecloud.de")),
            ("mars\n1", None),
            ("api.example.org", None),
        ] {
            let error = Region::parse(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            let text = error.to_string();
            assert!(text.contains("eu-west-1 (mypurecloud.ie)"), "{text}");
            let hint = meant.map(|meant| format!("(did you mean {meant:?}?)"));
            assert_eq!(text.contains("did you mean"), hint.is_some(), "{text}");
            assert!(hint.is_none_or(|hint| text.contains(&hint)), "{text}");
        }
    }

    #[test]
    fn region_custom_domain_must_be_host_name() {
        assert_eq!(
            Region::custom("Example.org").unwrap().login_url(),
            "https://login.example.org"
        );
        for bad in [
            "",
            "host",
            "a..b",
            "a/b.c",
            "https://x.y",
            "a.b:1",
            "u@a.b",
            "-a.b",
        ] {
            assert_eq!(
                Region::custom(bad).unwrap_err().kind(),
                ErrorKind::Config,
                "{bad}"
            );
        }
    }
}
