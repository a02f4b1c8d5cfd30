//! What the server's five-character codes mean here.

use sqlx::postgres::{PgDatabaseError, PgSeverity};

use crate::backend::{DbError, Driver, NotLetIn};

/// Says in our words why a statement failed on the endpoint called `place`.
pub(super) fn explain(error: sqlx::Error, place: &str) -> DbError {
    let Some(refusal) = error.as_database_error().and_then(|it| it.try_downcast_ref::<PgDatabaseError>()) else {
        return match error {
            sqlx::Error::Io(_) | sqlx::Error::Protocol(_) | sqlx::Error::Tls(_) => DbError::Lost,
            other => DbError::Engine(Driver::of(other)),
        };
    };
    if matches!(refusal.severity(), PgSeverity::Fatal | PgSeverity::Panic)
        && !matches!(refusal.code(), "53300" | "57P03")
    {
        // The session ended with it, or the server: what was under way may have been done.
        return DbError::Lost;
    }
    match refusal.code() {
        "PM001" | "PM002" => fence(refusal),
        "PM011" => {
            let term = refusal.detail().and_then(|term| term.parse().ok()).unwrap_or(0);
            DbError::FormerPrimary { place: place.to_owned(), term }
        }
        // A constraint's own name and table, never the message: that one may hold values.
        code if code.starts_with("PM") => refused(refusal, refusal.message(), false),
        "23505" => refused(refusal, refusal.constraint().unwrap_or("unique"), true),
        "23503" => refused(refusal, "FOREIGN KEY", false),
        code if code.starts_with("23") => refused(refusal, refusal.constraint().unwrap_or("constraint"), false),
        "42501" => {
            refused(refusal, "permission or row-level security; a program logs in as a member of pim_app", false)
        }
        "22P05" | "22021" => refused(refusal, "text that PostgreSQL cannot keep, such as a NUL character", false),
        "25006" => DbError::ReadOnly { place: place.to_owned() },
        // Serialisation, deadlock, lock time-out.
        "40001" | "40P01" | "55P03" => DbError::Busy,
        "53300" | "57P03" => not_let_in(error, place),
        "53100" | "53200" | "53400" => DbError::Full { place: place.to_owned() },
        // The server goes down; what was under way may have been done.
        "57P01" | "57P02" | "08006" | "08003" => DbError::Lost,
        "57014" => DbError::Cancelled { place: place.to_owned() },
        _ => DbError::Engine(shown(refusal)),
    }
}

/// What a server said, for those who look into an error. Detail, hint and context may hold values of rows, and so may the
/// message, unless it is of a class that speaks of schemas and settings.
fn shown(refusal: &PgDatabaseError) -> Driver {
    let code = refusal.code();
    // The last two are how a damaged page is found.
    let classes = ["0A", "25", "26", "3F", "42", "53", "54", "55", "58", "XX001", "XX002"];
    let speaks_of_no_row = classes.iter().any(|it| code.starts_with(it));
    let message = if speaks_of_no_row { refusal.message() } else { "its message may hold values of a row" };
    let about = [refusal.table(), refusal.column(), refusal.constraint(), refusal.routine()];
    let about = about.into_iter().flatten().collect::<Vec<_>>().join(", ");
    Driver::shown(format!("error {code} of the server ({about}): {message}"))
}

/// Says why the endpoint called `place` gave no connection. The driver's own words about a login may name its user, so they
/// stay out of what is shown.
pub(super) fn not_let_in(error: sqlx::Error, place: &str) -> DbError {
    let refusal = error.as_database_error().and_then(|it| it.try_downcast_ref::<PgDatabaseError>());
    let why = match refusal.map(|refusal| (refusal.code(), refusal)) {
        None if matches!(error, sqlx::Error::Tls(_)) => NotLetIn::Tls,
        None => return DbError::Unreachable { place: place.to_owned(), source: Driver::of(error) },
        Some(("28P01" | "28000", _)) => NotLetIn::Login,
        Some(("3D000", _)) => NotLetIn::NoSuchDatabase,
        Some(("42501", _)) => NotLetIn::MayNotConnect,
        Some(("53300", _)) => NotLetIn::TooMany,
        Some(("57P01" | "57P02" | "57P03", _)) => NotLetIn::Starting,
        Some((code, _)) => {
            return DbError::Engine(Driver::shown(format!("error {code} while a connection was opened")));
        }
    };
    DbError::NotLetIn { place: place.to_owned(), why }
}

fn refused(refusal: &PgDatabaseError, rule: &str, unique: bool) -> DbError {
    let rule = refusal.table().map_or_else(|| rule.to_owned(), |table| format!("{table}.{rule}"));
    DbError::Refused { rule, unique }
}

/// The detail is `newest owner`, and the owner is `-` when the database does not know it.
fn fence(refusal: &PgDatabaseError) -> DbError {
    let mut words = refusal.detail().unwrap_or_default().split(' ');
    let newest = words.next().and_then(|word| word.parse().ok()).unwrap_or(0);
    let owner = words.next().and_then(|word| word.parse().ok());
    DbError::Fence { newest, owner, draining: refusal.code() == "PM002" }
}
