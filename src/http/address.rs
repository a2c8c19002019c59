//! URLs of the API, and which hosts are this machine itself.

/// A base URL without a slash at its end, or what is wrong with it.
pub(crate) fn base_url(text: &str, allow_http: bool) -> Result<String, &'static str> {
    if text.is_empty() || text.bytes().any(is_foreign) {
        return Err("is not a URL: give one such as https://api.mypurecloud.com");
    }
    let Some((scheme, _)) = text.split_once("://") else {
        return Err("is not an absolute URL: it must begin with https://");
    };
    let authority = authority(text);
    if authority.contains('@') {
        return Err("must not hold a user name or password: leave out what stands before the @");
    }
    if text.contains(['?', '#']) {
        return Err("must not hold a query or fragment: leave out what follows the ? or #");
    }
    if !is_addressable(authority) {
        return Err(
            "has no valid host and port: give a host name, and a port from 1 to 65535 if any",
        );
    }
    if scheme.eq_ignore_ascii_case("http") {
        if !allow_http && !is_loopback(host_of(text)) {
            return Err(
                "is http, which would send the token in the clear: use https, or allow_http (in \
                 JSON allowHttp) for a host you trust (loopback hosts need neither)",
            );
        }
    } else if !scheme.eq_ignore_ascii_case("https") {
        return Err("has another scheme than https: it must begin with https://");
    }
    Ok(text.trim_end_matches('/').to_owned())
}

/// Whether an authority has a host, and a port that is one if any is given: else the scheme's
/// would be taken in silence.
pub(crate) fn is_addressable(authority: &str) -> bool {
    let (host, port) = match authority.strip_prefix('[') {
        Some(v6) => match v6.split_once(']') {
            Some((host, rest)) if host.parse::<std::net::Ipv6Addr>().is_ok() => (
                host,
                rest.strip_prefix(':').or(rest.is_empty().then_some("80")),
            ),
            _ => return false,
        },
        None => match authority.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (authority, Some("80")),
        },
    };
    let valid_port = |port: &str| {
        port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|n| n > 0)
    };
    let in_name = |b: u8| b.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=:".contains(&b);
    !host.is_empty() && host.bytes().all(in_name) && port.is_some_and(valid_port)
}

/// What stands between `://` and the path.
fn authority(url: &str) -> &str {
    let rest = url.split_once("://").map_or(url, |(_, rest)| rest);
    rest.split(['/', '?', '#']).next().unwrap_or(rest)
}

/// `host:port` of an absolute URL, without user information.
pub(crate) fn host_and_port(url: &str) -> &str {
    let authority = authority(url);
    authority.rsplit_once('@').map_or(authority, |(_, h)| h)
}

/// Checks the URL that events are sent to: https, or http on this machine itself. Who has its path
/// and query can send there too, so no message quotes them.
#[cfg(feature = "forward")]
pub(crate) fn check_webhook(text: &str) -> Result<(), &'static str> {
    if text.is_empty() || text.bytes().any(is_foreign) {
        return Err("is not a URL: give one such as https://crm.example/hooks/genesys");
    }
    let Some((scheme, _)) = text.split_once("://") else {
        return Err("has no scheme: it must begin with https://");
    };
    if authority(text).contains('@') {
        return Err("must not hold a user name or password: send them in a header");
    }
    if text.contains('#') {
        return Err("must not hold a fragment: leave out what follows the #");
    }
    if !is_addressable(authority(text)) {
        return Err(
            "has no valid host and port: give a host name, and a port from 1 to 65535 if any",
        );
    }
    if scheme.eq_ignore_ascii_case("https") {
        return match cfg!(feature = "rustls") {
            true => Ok(()),
            false => Err("is https, which needs the feature \"rustls\" of this library"),
        };
    }
    if !scheme.eq_ignore_ascii_case("http") {
        return Err("has another scheme than https: it must begin with https://");
    }
    if !is_loopback(host_of(text)) {
        return Err(
            "is http, which would send the events in the clear: use https (loopback hosts need \
             not)",
        );
    }
    Ok(())
}

/// What RFC 3986 leaves out of every part of a URL.
fn is_foreign(b: u8) -> bool {
    !b.is_ascii_graphic() || b"\"<>\\^`{|}".contains(&b)
}

/// The host of an absolute URL, without port and brackets.
pub(crate) fn host_of(url: &str) -> &str {
    let authority = host_and_port(url);
    match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next().unwrap_or(v6),
        None => authority.split(':').next().unwrap_or(authority),
    }
}

/// Whether a host is this machine itself.
pub(crate) fn is_loopback(host: &str) -> bool {
    if let Ok(ip) = host.parse::<std::net::IpAddr>() {
        return ip.is_loopback();
    }
    let name = host.trim_end_matches('.');
    name.eq_ignore_ascii_case("localhost")
        || name.len() > 10 && name.to_ascii_lowercase().ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_host_of_url_by_table() {
        for (url, host, loopback) in [
            (
                "https://api.mypurecloud.com/api",
                "api.mypurecloud.com",
                false,
            ),
            ("http://127.0.0.1:80", "127.0.0.1", true),
            ("http://127.8.9.1/x", "127.8.9.1", true),
            ("http://[::1]:8080/x", "::1", true),
            ("http://localhost:1?x", "localhost", true),
            ("http://LOCALHOST", "LOCALHOST", true),
            ("http://a.localhost", "a.localhost", true),
            ("http://user:pw@127.0.0.1:1/", "127.0.0.1", true),
            ("http://127.0.0.1@evil.example/", "evil.example", false),
            (
                "http://localhost.evil.example",
                "localhost.evil.example",
                false,
            ),
            (
                "http://127.0.0.1.evil.example",
                "127.0.0.1.evil.example",
                false,
            ),
        ] {
            assert_eq!(host_of(url), host, "{url}");
            assert_eq!(is_loopback(host), loopback, "{url}");
        }
    }

    #[test]
    fn address_base_url_by_table() {
        for (text, open, ok) in [
            ("https://api.mypurecloud.com", false, true),
            ("https://gw.example/genesys/", false, true),
            ("http://127.0.0.1:8080", false, true),
            ("http://[::1]:8080/", false, true),
            ("http://localhost", false, true),
            ("http://gw.example", false, false),
            ("http://gw.example", true, true),
            ("http://127.0.0.1@evil.example", true, false),
            ("https://user:pw@gw.example", false, false),
            ("https://gw.example/?x=1", false, false),
            ("https://gw.example/#x", false, false),
            ("ftp://gw.example", true, false),
            ("gw.example", false, false),
            ("https://", false, false),
            ("", false, false),
            ("https://gw.exa mple", false, false),
            ("https://gw.example/\n", false, false),
            ("https://gw.example:0", false, false),
            ("https://gw.example:65536", false, false),
            ("https://gw.example:+80", false, false),
            ("https://gw.example:", false, false),
            ("https://:443", false, false),
            ("https://[::1", false, false),
            ("https://[gw]", false, false),
            ("https://[::1]443", false, false),
            ("HTTPS://gw.example:443", false, true),
        ] {
            let found = base_url(text, open);
            assert_eq!(found.is_ok(), ok, "{text}: {found:?}");
            assert!(found.is_err() || !found.is_ok_and(|url| url.ends_with('/')));
        }
    }
}
