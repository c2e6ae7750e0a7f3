//! The Jinja that `transformers` renders chat templates with: its options, functions and filters.
//! It knows no messages.

use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Rest};
use minijinja::{Environment, Error, ErrorKind, Value};
use serde::Serialize;
use serde_json::ser::{Formatter, PrettyFormatter, Serializer};

/// The words of a template's `raise_exception`, as the error's source.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Raised(pub(crate) String);

/// An environment with no template yet.
pub(crate) fn environment() -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_trim_blocks(true);
    environment.set_lstrip_blocks(true);
    environment.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    environment.add_function("raise_exception", raise_exception);
    environment.add_function("strftime_now", strftime_now);
    environment.add_filter("tojson", to_json);
    environment
}

fn raise_exception(message: String) -> Result<Value, Error> {
    Err(Error::new(ErrorKind::InvalidOperation, message.clone()).with_source(Raised(message)))
}

/// The date and time in UTC, so that every node renders the same.
fn strftime_now(format: String) -> String {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    strftime(&format, since.as_secs())
}

/// Python's `json.dumps` with `ensure_ascii=False`: a blank after commas and colons, no HTML
/// escapes; `indent` as Python's.
fn to_json(value: &Value, options: Kwargs, _rest: Rest<Value>) -> Result<Value, Error> {
    let n_indent: Option<usize> = options.get("indent")?;
    let mut out = Vec::new();
    let written = match n_indent {
        Some(n_indent) => {
            let indent = b" ".repeat(n_indent.min(16));
            let formatter = PrettyFormatter::with_indent(&indent);
            value.serialize(&mut Serializer::with_formatter(&mut out, formatter))
        }
        None => value.serialize(&mut Serializer::with_formatter(&mut out, PythonFormatter)),
    };
    written.map_err(|error| {
        Error::new(ErrorKind::BadSerialization, "cannot be JSON").with_source(error)
    })?;
    let text = String::from_utf8(out).expect("serde_json writes UTF-8");
    Ok(Value::from(text))
}

/// `", "` and `": "` between items, as Python writes them.
struct PythonFormatter;

impl Formatter for PythonFormatter {
    fn begin_array_value<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_key<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
        first: bool,
    ) -> std::io::Result<()> {
        writer.write_all(if first { b"" } else { b", " })
    }

    fn begin_object_value<W: std::io::Write + ?Sized>(
        &mut self,
        writer: &mut W,
    ) -> std::io::Result<()> {
        writer.write_all(b": ")
    }
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const WEEKDAYS: [&str; 7] =
    ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];

/// C's `strftime` for the codes that templates use; an unknown code stays as it is written.
fn strftime(format: &str, unix_s: u64) -> String {
    let (n_days, second) = (unix_s / 86_400, unix_s % 86_400);
    let (year, month, day) = civil_date(n_days);
    let month_name = MONTHS[month as usize - 1];
    let weekday = WEEKDAYS[(n_days % 7) as usize];
    let mut text = String::new();
    let mut characters = format.chars();
    while let Some(character) = characters.next() {
        if character != '%' {
            text.push(character);
            continue;
        }
        match characters.next() {
            Some('Y') => text.push_str(&year.to_string()),
            Some('y') => text.push_str(&format!("{:02}", year % 100)),
            Some('m') => text.push_str(&format!("{month:02}")),
            Some('d') => text.push_str(&format!("{day:02}")),
            Some('B') => text.push_str(month_name),
            Some('b') => text.push_str(&month_name[..3]),
            Some('A') => text.push_str(weekday),
            Some('a') => text.push_str(&weekday[..3]),
            Some('H') => text.push_str(&format!("{:02}", second / 3600)),
            Some('M') => text.push_str(&format!("{:02}", second / 60 % 60)),
            Some('S') => text.push_str(&format!("{:02}", second % 60)),
            Some('%') => text.push('%'),
            Some(unknown) => text.extend(['%', unknown]),
            None => text.push('%'),
        }
    }
    text
}

/// Year, month and day of a day since 1970-01-01 in the Gregorian calendar (Hinnant's
/// `civil_from_days`, for days not before 1970).
fn civil_date(n_days: u64) -> (u64, u64, u64) {
    let shifted = n_days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 { shifted_month + 3 } else { shifted_month - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use minijinja::context;

    use super::*;

    fn render(source: &str) -> String {
        let value: serde_json::Value = serde_json::json!({
            "name": "f<é>", "list": [1, 2.5, "it's"], "none": null, "empty": {}, "yes": true,
        });
        environment().render_str(source, context! { value }).expect("renders")
    }

    #[test]
    fn tojson_writes_what_python_does() {
        // json.dumps(value, ensure_ascii=False)
        let compact =
            r#"{"name": "f<é>", "list": [1, 2.5, "it's"], "none": null, "empty": {}, "yes": true}"#;
        assert_eq!(render("{{ value | tojson }}"), compact);
        let indented = "[\n    1,\n    2.5,\n    \"it's\"\n]";
        assert_eq!(render("{{ value.list | tojson(indent=4) }}"), indented);
    }

    #[test]
    fn blocks_are_trimmed_and_python_s_methods_exist() {
        let source = "  {% if true %}\n{{ 'a-b'.split('-')[-1] }}{{ ' x '.strip().upper() }}\n\
                      \u{20} {% endif %}\nend\n";
        assert_eq!(render(source), "bX\nend");
    }

    #[test]
    fn dates_are_c_s() {
        // date -u -d @N '+…'
        let cases = [
            (0, "%d %b %Y", "01 Jan 1970"),
            (951_827_696, "%A %a %d %B %Y %H:%M:%S", "Tuesday Tue 29 February 2000 12:34:56"),
            (1_735_689_599, "%y-%m-%d 100%% %Q", "24-12-31 100% %Q"),
            (4_107_542_400, "%Y-%m-%d", "2100-03-01"),
        ];
        for (unix_s, format, expected) in cases {
            assert_eq!(strftime(format, unix_s), expected, "{unix_s} {format}");
        }
    }
}
