//! How a verb ends when it does not end well: what went wrong, what to do
//! next, and the exit code.

use muster_client::ClientError;
use muster_protocol::predicate::{Span, render};
use muster_protocol::problem::Problem;

use crate::ui::Paint;

/// Some node did not succeed, or a finding was made.
pub const NOT_ALL: u8 = 1;
/// The command line, a file or a value is wrong.
pub const USAGE: u8 = 2;
/// The token was not taken.
pub const DENIED: u8 = 4;
/// The broker cannot be reached, or is not known.
pub const UNREACHABLE: u8 = 5;
/// Cancelled, or not confirmed.
pub const CANCELLED: u8 = 6;

/// One clear error.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Failure {
    /// What went wrong, one line.
    pub message: String,
    /// Where and why.
    pub detail: Option<String>,
    /// What to do next.
    pub hint: Option<String>,
    /// Place in a text: the text, and the span in it.
    pub place: Option<(String, Span)>,
    /// Exit code of the process.
    pub code: u8,
}

impl Failure {
    /// With that exit code.
    pub fn new(code: u8, message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            detail: None,
            hint: None,
            place: None,
            code,
        }
    }

    /// Of the command line or a file.
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(USAGE, message)
    }

    /// With where and why.
    #[must_use]
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// With what to do next.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// As it is shown, with a line break at its end. Everything that came
    /// from outside is escaped.
    #[must_use]
    pub fn render(&self, paint: Paint) -> String {
        let mut out = match &self.place {
            Some((source, span)) => render(&self.message, source, *span, self.hint.as_deref()),
            None => format!("error: {}", escaped(&self.message)),
        };
        if let Some(rest) = out.strip_prefix("error:") {
            out = format!("{}{rest}", paint.bad("error:"));
        }
        out.push('\n');
        let hint = self.hint.as_ref().filter(|_| self.place.is_none());
        for line in self.detail.iter().chain(hint).flat_map(|text| text.lines()) {
            out.push_str("  ");
            out.push_str(&escaped(line));
            out.push('\n');
        }
        out
    }
}

/// Escaped line by line: the breaks between lines stay.
fn escaped(text: &str) -> String {
    let lines: Vec<_> = text
        .lines()
        .map(muster_protocol::text::printable_line)
        .collect();
    lines.join("\n  ")
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let mut failure = Self::new(error.exit_code(), error.to_string());
        failure.hint = error.hint();
        if let ClientError::Problem(problem) = error {
            let Problem {
                detail,
                span,
                source,
                ..
            } = *problem;
            failure.detail = detail;
            failure.place = source
                .zip(span)
                .map(|(source, (start, end))| (source, Span { start, end }));
        }
        failure
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(NOT_ALL, format!("cannot read or write: {error}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use muster_protocol::problem::Kind;

    fn shown(problem: Problem) -> String {
        Failure::from(ClientError::Problem(Box::new(problem))).render(Paint::plain())
    }

    #[test]
    fn mistakes_point_at_their_place() {
        let mut problem = Problem::new(
            Kind::UnknownName,
            "no node has a label or fact `zoen`; nothing was run",
        )
        .hint("did you mean `zone`?  (--allow-unknown if you meant it)");
        problem.span = Some((13, 17));
        problem.source = Some("role=web and zoen=gva2".into());
        insta::assert_snapshot!(shown(problem), @r"
        error: no node has a label or fact `zoen`; nothing was run
          role=web and zoen=gva2
                       ^^^^ did you mean `zone`?  (--allow-unknown if you meant it)
        ");
    }

    #[test]
    fn a_problem_says_what_why_and_what_next() {
        let problem = Problem::new(Kind::Denied, "ana may not rotate keys")
            .detail("the token has the role operator")
            .hint("ask an admin\x1b[31m");
        insta::assert_snapshot!(shown(problem), @r"
        error: ana may not rotate keys
          the token has the role operator
          ask an admin\x1b[31m
        ");
    }

    #[test]
    fn a_span_that_does_not_fit_is_no_trap() {
        let mut problem = Problem::new(Kind::InvalidPredicate, "odd");
        problem.span = Some((90, 3));
        problem.source = Some("é".into());
        assert!(shown(problem).starts_with("error: odd"));
    }

    #[test]
    fn exit_codes_are_those_of_the_design() {
        let code = |error: ClientError| Failure::from(error).code;
        assert_eq!(
            code(ClientError::Refused {
                url: "http://a".into()
            }),
            5
        );
        assert_eq!(
            code(ClientError::Problem(Box::new(Problem::new(
                Kind::NoMatch,
                ""
            )))),
            3
        );
        assert_eq!(
            code(ClientError::Problem(Box::new(Problem::new(
                Kind::Unauthenticated,
                ""
            )))),
            4
        );
        assert_eq!(
            code(ClientError::Problem(Box::new(Problem::new(
                Kind::PlanGone,
                ""
            )))),
            6
        );
        assert_eq!(
            code(ClientError::Url {
                url: "x".into(),
                why: "y".into()
            }),
            2
        );
    }
}
