//! Lists of module names and patterns, which each producer writes in a language of its own.

use regex::Regex;

use crate::error::ConfigError;

/// Matches whole module names such as `model.layers.3.mlp.down_proj`.
#[derive(Clone, Debug, Default)]
pub(super) struct Patterns {
    regexes: Vec<Regex>,
}

impl Patterns {
    /// Matches every module.
    pub(super) fn everything() -> Patterns {
        Patterns { regexes: vec![Regex::new("").expect("the empty pattern is valid")] }
    }

    /// ModelOpt's: a name, a run of whole name parts (`lm_head`, `layers.3.mlp`), or a wildcard as
    /// Python's fnmatch reads it.
    ///
    /// vLLM takes any substring, with which `layers.1` would exclude `layers.10` too; parts of a
    /// name do not have that fault and match everything that producers write.
    pub(super) fn modelopt(patterns: &[String]) -> Result<Patterns, ConfigError> {
        let translated = patterns.iter().map(|pattern| {
            let parts = regex::escape(pattern.trim_matches('.'));
            format!(r"^(?:(?:.*\.)?{parts}(?:\..*)?|{})$", wildcard(pattern))
        });
        Patterns::compile(patterns, translated)
    }

    /// compressed-tensors': a name, `re:` with a regular expression that matches from the start,
    /// or `Linear`, which is every projection.
    pub(super) fn compressed_tensors(patterns: &[String]) -> Result<Patterns, ConfigError> {
        let translated = patterns.iter().map(|pattern| match pattern.strip_prefix("re:") {
            Some(regex) => format!("^(?:{regex})"),
            None if pattern == "Linear" => String::new(),
            None => format!("^{}$", regex::escape(pattern)),
        });
        Patterns::compile(patterns, translated)
    }

    pub(super) fn matches(&self, module: &str) -> bool {
        self.regexes.iter().any(|regex| regex.is_match(module))
    }

    fn compile(
        patterns: &[String],
        translated: impl Iterator<Item = String>,
    ) -> Result<Patterns, ConfigError> {
        let compile = |(pattern, regex): (&String, String)| {
            Regex::new(&regex).map_err(|error| ConfigError::Field {
                field: "quantized or ignored modules".to_owned(),
                found: format!("\"{pattern}\""),
                expected: format!("a pattern that we understand ({error})"),
            })
        };
        let regexes = patterns.iter().zip(translated).map(compile).collect::<Result<_, _>>()?;
        Ok(Patterns { regexes })
    }
}

/// fnmatch to a regular expression: `*`, `?`, `[set]` and `[!set]`.
fn wildcard(pattern: &str) -> String {
    let mut regex = String::new();
    let mut rest = pattern;
    while let Some(first) = rest.chars().next() {
        rest = &rest[first.len_utf8()..];
        match (first, rest.find(']')) {
            ('*', _) => regex.push_str(".*"),
            ('?', _) => regex.push('.'),
            ('[', Some(end)) if end > 0 => {
                let (negation, set) = match rest[..end].strip_prefix('!') {
                    Some(set) => ("^", set),
                    None => ("", &rest[..end]),
                };
                // A dash makes a range in both languages; all else is taken literally.
                let set = regex::escape(set).replace(r"\-", "-");
                regex.push_str(&format!("[{negation}{set}]"));
                rest = &rest[end + 1..];
            }
            (other, _) => regex.push_str(&regex::escape(&other.to_string())),
        }
    }
    regex
}
