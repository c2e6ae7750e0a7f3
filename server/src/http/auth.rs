//! API keys: which caller may ask, and whose share of the machine that takes. It knows no routes.

use std::fmt;
use std::hint::black_box;

use axum::http::{HeaderMap, header};
use engine::TenantId;
use sha2::{Digest, Sha256};

use super::error::ApiError;

/// Keys of one server at most.
pub const N_KEYS_MAX: usize = 4096;

/// The keys that callers may show. Each is a tenant of its own; without keys, anybody may ask, and
/// all share one.
#[derive(Clone, Default)]
pub struct ApiKeys {
    /// What is kept of a key: as long for every one, and no key can be read from it.
    digests: Vec<[u8; 32]>,
}

impl ApiKeys {
    /// Keys, the first of which is tenant 0.
    ///
    /// # Panics
    /// There are more than [`N_KEYS_MAX`].
    pub fn new(keys: &[String]) -> ApiKeys {
        assert!(keys.len() <= N_KEYS_MAX, "{} keys, at most {N_KEYS_MAX}", keys.len());
        ApiKeys { digests: keys.iter().map(|key| digest(key.as_bytes())).collect() }
    }

    /// Keys of a file's text: one a line, without the blanks around it; empty lines and those that
    /// begin with `#` say nothing.
    pub fn lines(text: &str) -> impl Iterator<Item = &str> {
        text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'))
    }

    /// Whose key a request shows as `Authorization: Bearer KEY`.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`]: there are keys, and it is none of them.
    pub fn check(&self, headers: &HeaderMap) -> Result<TenantId, ApiError> {
        if self.digests.is_empty() {
            return Ok(TenantId(0));
        }
        let given = headers.get(header::AUTHORIZATION).ok_or(ApiError::Unauthorized)?;
        match given.as_bytes().split_at_checked(BEARER.len()) {
            Some((scheme, key)) if scheme.eq_ignore_ascii_case(BEARER) => {
                self.find(key).ok_or(ApiError::Unauthorized)
            }
            _ => Err(ApiError::Unauthorized),
        }
    }

    /// Looks at every key and every byte, whatever is found: how long it takes tells nothing.
    fn find(&self, key: &[u8]) -> Option<TenantId> {
        let given = digest(key);
        let mut found = None;
        for (idx, digest) in self.digests.iter().enumerate() {
            let difference =
                given.iter().zip(digest).fold(0, |sum, (a, b)| black_box(sum | (a ^ b)));
            if black_box(difference) == 0 {
                found = found.or(Some(TenantId(idx as u32)));
            }
        }
        found
    }
}

const BEARER: &[u8] = b"Bearer ";

fn digest(key: &[u8]) -> [u8; 32] {
    Sha256::digest(key).into()
}

// Nothing of a key belongs into a log.
impl fmt::Debug for ApiKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ApiKeys({})", self.digests.len())
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_a_whole_key_passes_and_says_whose_it_is() {
        let keys = ApiKeys::new(&["sesame".into(), "tahini".into()]);
        let cases = [
            (Some("Bearer sesame"), Some(0)),
            (Some("bearer tahini"), Some(1)),
            (Some("Bearer sesamf"), None),
            (Some("Bearer sesam"), None),
            (Some("Bearer sesame "), None),
            (Some("Bearer "), None),
            (Some("Basic sesame"), None),
            (Some("sesame"), None),
            (None, None),
        ];
        for (given, tenant) in cases {
            let mut headers = HeaderMap::new();
            if let Some(given) = given {
                headers.insert(header::AUTHORIZATION, HeaderValue::from_static(given));
            }
            assert_eq!(keys.check(&headers).ok(), tenant.map(TenantId), "{given:?}");
        }
        assert_eq!(format!("{keys:?}"), "ApiKeys(2)");
        assert_eq!(ApiKeys::default().check(&HeaderMap::new()), Ok(TenantId(0)), "all may");
    }

    #[test]
    fn a_file_has_a_key_a_line() {
        let text = "# ours\nsesame\n\n  tahini \r\n#old\n";
        assert_eq!(ApiKeys::lines(text).collect::<Vec<_>>(), ["sesame", "tahini"]);
    }
}
