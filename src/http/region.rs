//! The regions of Genesys Cloud: a name or domain in, the login and API addresses out.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use crate::error::{Error, ErrorKind, Result, clip, one_line};

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
    /// Finds a region by its AWS name (`eu-west-1` or `eu_west_1`) or its domain
    /// (`mypurecloud.ie`), in any case.
    ///
    /// # Errors
    ///
    /// [`ErrorKind::Config`] for any other text, listing the choices. A domain that is not in the
    /// table is made with [`Region::custom`].
    pub fn parse(name: &str) -> Result<Region> {
        let wanted = name.trim().to_ascii_lowercase();
        let as_aws = wanted.replace('_', "-");
        for (aws, domain) in TABLE {
            if as_aws == aws || wanted == domain {
                return Ok(Region {
                    domain: Cow::Borrowed(domain),
                });
            }
        }
        let choices: Vec<String> = TABLE
            .iter()
            .map(|(aws, domain)| format!("{aws} ({domain})"))
            .collect();
        Err(Error::new(
            ErrorKind::Config,
            format!(
                "unknown region {:?}: use one of {}",
                one_line(&clip(name, 80)),
                choices.join(", ")
            ),
        ))
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
            ] {
                let region = Region::parse(&name).unwrap();
                assert_eq!(region.domain(), domain, "{name}");
                assert_eq!(region.api_url(), format!("https://api.{domain}"));
                assert_eq!(region.login_url(), format!("https://login.{domain}"));
            }
        }
        assert_eq!(Region::known().count(), 18);
    }

    #[test]
    fn region_unknown_names_choices() {
        for name in ["", "eu-west-9", "api.mypurecloud.com", "mars\n1"] {
            let error = Region::parse(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains("eu-west-1 (mypurecloud.ie)"));
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
