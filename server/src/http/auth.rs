//! The API key: one for all, compared in constant time. It knows no routes.

use std::fmt;
use std::hint::black_box;

use axum::http::{HeaderMap, header};

use super::error::ApiError;

/// The key that callers must show.
#[derive(Clone)]
pub struct ApiKey(String);

impl ApiKey {
    /// A key.
    pub fn new(key: String) -> ApiKey {
        ApiKey(key)
    }

    /// Lets a request pass that carries `Authorization: Bearer KEY`.
    ///
    /// # Errors
    /// [`ApiError::Unauthorized`].
    pub fn check(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        let Some(given) = headers.get(header::AUTHORIZATION) else {
            return Err(ApiError::Unauthorized);
        };
        match given.as_bytes().split_at_checked(BEARER.len()) {
            Some((scheme, key))
                if scheme.eq_ignore_ascii_case(BEARER) && is_equal(key, self.0.as_bytes()) =>
            {
                Ok(())
            }
            _ => Err(ApiError::Unauthorized),
        }
    }
}

const BEARER: &[u8] = b"Bearer ";

// A key does not belong into a log.
impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Takes as long for any two strings of the same length: how long does not tell where they differ.
fn is_equal(given: &[u8], wanted: &[u8]) -> bool {
    if given.len() != wanted.len() {
        return false;
    }
    let difference = given.iter().zip(wanted).fold(0, |sum, (a, b)| black_box(sum | (a ^ b)));
    difference == 0
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    #[test]
    fn only_the_whole_key_passes() {
        let key = ApiKey::new("sesame".into());
        let cases = [
            (Some("Bearer sesame"), true),
            (Some("bearer sesame"), true),
            (Some("Bearer sesamf"), false),
            (Some("Bearer sesam"), false),
            (Some("Bearer sesame "), false),
            (Some("Bearer "), false),
            (Some("Basic sesame"), false),
            (Some("sesame"), false),
            (None, false),
        ];
        for (given, passes) in cases {
            let mut headers = HeaderMap::new();
            if let Some(given) = given {
                headers.insert(header::AUTHORIZATION, HeaderValue::from_static(given));
            }
            assert_eq!(key.check(&headers).is_ok(), passes, "{given:?}");
        }
        assert!(!format!("{key:?}").contains("sesame"));
    }
}
