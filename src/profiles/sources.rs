//! Where profiles come from, as people read it.

use super::text;
use adaptis_coordinator::profiles::account::{Account, Source};
use serde_json::{Value, json};
use std::collections::BTreeSet;

/// Digits of an id that a table shows: enough to tell any two apart and to name one.
const ID_DIGITS: usize = 10;

/// A source as JSON.
pub fn source(source: &Source) -> Value {
    json!({
        "id": source.id,
        "name": source.name,
        "how": source.how,
        "samples": source.samples,
        "first_seen": source.first_seen,
        "last_seen": source.last_seen,
        "merged": source.merged,
    })
}

/// A source as JSON, with what it is of.
pub fn json(account: &Account) -> Value {
    let mut value = source(&account.source);
    value["profiles"] = account.works.len().into();
    value["kinds"] = json!(kinds(account));
    value["software"] = json!(software(account));
    value
}

/// All kinds that a source tells of.
pub fn kinds(account: &Account) -> BTreeSet<&str> {
    let works = account.works.keys().map(|key| key.kind.as_str());
    works
        .chain(account.kinds.keys().map(String::as_str))
        .chain(account.rates.keys().map(String::as_str))
        .chain(account.overheads.keys().map(String::as_str))
        .collect()
}

fn software(account: &Account) -> BTreeSet<&str> {
    account.works.keys().map(|key| key.software.as_str()).filter(|software| !software.is_empty()).collect()
}

/// Sources as a table.
pub fn table<'a>(accounts: impl IntoIterator<Item = &'a Account>) -> String {
    let joined = |texts: BTreeSet<&str>| texts.into_iter().collect::<Vec<_>>().join(", ");
    let head = ["source", "name", "profiles", "samples", "from", "to", "merged", "kinds", "software", "how"];
    let are_numbers = [false, false, true, true, false, false, false, false, false, false];
    let cells = |account: &Account| {
        let Source { id, name, how, samples, first_seen, last_seen, merged } = &account.source;
        vec![
            id.chars().take(ID_DIGITS).collect(),
            name.clone(),
            account.works.len().to_string(),
            samples.to_string(),
            text::instant(*first_seen),
            text::instant(*last_seen),
            text::instant(*merged),
            joined(kinds(account)),
            match software(account) {
                none if none.is_empty() => "-".to_owned(),
                some => joined(some),
            },
            how.clone(),
        ]
    };
    text::table(&head, &are_numbers, &accounts.into_iter().map(cells).collect::<Vec<_>>())
}
