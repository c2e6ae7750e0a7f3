//! The reasoning toggle: each generation of the family reads it from another place.

use minijinja::Value;

use super::template::ChatMessage;

const PHRASES: [&str; 2] = ["detailed thinking on", "detailed thinking off"];
const SLASHES: [&str; 2] = ["/think", "/no_think"];

/// Whether the model reasons in `<think>…</think>` before it answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Thinking {
    /// It does.
    On,
    /// It answers at once.
    Off,
}

/// Where a template looks for the toggle.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThinkingStyle {
    /// `detailed thinking on|off` in the system message (Nano, Super v1, Ultra).
    Phrase,
    /// `/think` or `/no_think` in the system message (Super v1.5).
    Slash,
    /// The variable `enable_thinking` alone.
    Variable,
}

impl ThinkingStyle {
    /// What a template's source tells.
    pub(crate) fn of(template: &str) -> ThinkingStyle {
        if template.contains("/no_think") {
            ThinkingStyle::Slash
        } else if template.contains("enable_thinking") && !template.contains("detailed thinking") {
            ThinkingStyle::Variable
        } else {
            // Super v1's template names no toggle, but the model was trained on the phrase.
            ThinkingStyle::Phrase
        }
    }

    /// Writes the toggle into the system message: over the one that is there, else before what it
    /// says, else as a message of its own.
    pub(crate) fn apply(self, thinking: Thinking, messages: &mut Vec<ChatMessage>) {
        let (toggles, separator) = match self {
            ThinkingStyle::Phrase => (PHRASES, "\n\n"),
            ThinkingStyle::Slash => (SLASHES, "\n"),
            ThinkingStyle::Variable => return,
        };
        let wanted = toggles[thinking as usize];
        let Some(system) = messages.first_mut().filter(|message| message.role == "system") else {
            messages.insert(0, ChatMessage::new("system", wanted));
            return;
        };
        let found = toggles.iter().find(|toggle| system.content.contains(**toggle));
        if let Some(found) = found {
            system.content = system.content.replace(found, wanted);
        } else if system.content.trim().is_empty() {
            system.content = wanted.to_owned();
        } else {
            system.content = format!("{wanted}{separator}{}", system.content);
        }
    }
}

/// What the templates of the family put where there is no system message.
pub(crate) const ON_BY_DEFAULT: &str = PHRASES[0];

impl ThinkingStyle {
    /// Whether the model will reason, given all messages, what the caller chose, and what the
    /// template says of itself.
    pub(crate) fn reasons(
        self,
        messages: &[ChatMessage],
        chosen: Option<Thinking>,
        template: &str,
    ) -> bool {
        let system = messages.first().filter(|message| message.role == "system");
        match self {
            // A system message of the caller's takes the place of the default one.
            ThinkingStyle::Phrase => match system {
                Some(system) => system.content.contains(PHRASES[0]),
                None => template.contains(ON_BY_DEFAULT),
            },
            ThinkingStyle::Slash => !system.is_some_and(|one| one.content.contains(SLASHES[1])),
            ThinkingStyle::Variable => chosen != Some(Thinking::Off),
        }
    }
}

impl Thinking {
    /// Variables that templates outside the family read, for every style.
    pub(crate) fn variables(self) -> [(&'static str, Value); 2] {
        let is_on = Value::from(self == Thinking::On);
        [("enable_thinking", is_on.clone()), ("thinking", is_on)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn applied(style: ThinkingStyle, thinking: Thinking, system: Option<&str>) -> Vec<String> {
        let mut messages: Vec<ChatMessage> =
            system.into_iter().map(|text| ChatMessage::new("system", text)).collect();
        messages.push(ChatMessage::new("user", "hi"));
        style.apply(thinking, &mut messages);
        messages.into_iter().map(|message| message.content).collect()
    }

    #[test]
    fn the_toggle_is_written_where_the_model_reads_it() {
        use Thinking::{Off, On};
        use ThinkingStyle::{Phrase, Slash, Variable};
        let cases = [
            (Phrase, Off, None, "detailed thinking off"),
            (Phrase, On, Some(""), "detailed thinking on"),
            (Phrase, On, Some("Be brief."), "detailed thinking on\n\nBe brief."),
            (Phrase, Off, Some("detailed thinking on. Hm"), "detailed thinking off. Hm"),
            (Phrase, Off, Some("detailed thinking off"), "detailed thinking off"),
            (Slash, Off, None, "/no_think"),
            (Slash, On, Some("/no_think\nBe brief."), "/think\nBe brief."),
            (Slash, Off, Some("Be brief."), "/no_think\nBe brief."),
            (Variable, Off, Some("Be brief."), "Be brief."),
        ];
        for (style, thinking, system, expected) in cases {
            let messages = applied(style, thinking, system);
            assert_eq!(messages, [expected, "hi"], "{style:?} {thinking:?} {system:?}");
        }
        assert_eq!(applied(Variable, On, None), ["hi"]);
    }

    #[test]
    fn whether_it_reasons_is_known_before_it_answers() {
        use ThinkingStyle::{Phrase, Slash, Variable};
        let family = "{% set system = 'detailed thinking on' %}";
        let cases = [
            (Phrase, None, None, family, true),
            (Phrase, None, None, "Llama's own", false),
            (Phrase, Some(""), None, family, false),
            (Phrase, Some("detailed thinking on"), None, "", true),
            (Phrase, Some("detailed thinking off"), None, family, false),
            (Slash, None, None, "/no_think", true),
            (Slash, Some("Be brief. /no_think"), None, "/no_think", false),
            (Slash, Some("/think"), None, "/no_think", true),
            (Variable, None, None, "", true),
            (Variable, None, Some(Thinking::Off), "", false),
        ];
        for (style, system, chosen, template, expected) in cases {
            let messages: Vec<ChatMessage> =
                system.into_iter().map(|text| ChatMessage::new("system", text)).collect();
            let reasons = style.reasons(&messages, chosen, template);
            assert_eq!(reasons, expected, "{style:?} {system:?} {chosen:?}");
        }
    }

    #[test]
    fn the_style_is_read_from_the_template() {
        let cases = [
            ("{% if '/no_think' in system %}enable_thinking", ThinkingStyle::Slash),
            ("{{ 'detailed thinking on' }}", ThinkingStyle::Phrase),
            ("{% if enable_thinking %}", ThinkingStyle::Variable),
            ("{{ messages }}", ThinkingStyle::Phrase),
        ];
        for (template, style) in cases {
            assert_eq!(ThinkingStyle::of(template), style, "{template}");
        }
    }
}
