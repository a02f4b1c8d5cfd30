//! What is personal in the data set, read from the rows themselves.

use std::collections::BTreeSet;

use pim_data::backend::Statement;
use pim_lab::workers::Stores;
use uuid::Uuid;

/// Names, dates of birth, numbers, addresses, mail and telephone of everybody.
pub(super) struct Particulars(BTreeSet<String>);

/// One of them.
#[derive(Debug)]
pub(super) struct Person {
    pub(super) id: Uuid,
    pub(super) given_name: String,
    pub(super) family_name: String,
    pub(super) birth_date: String,
    pub(super) syn_number: String,
    pub(super) address: String,
    pub(super) telephone: String,
    pub(super) mail: String,
}

async fn everybody(stores: &Stores) -> Vec<Person> {
    const SELECT: &str = "SELECT id, given_name, family_name, birth_date, syn_number, \
                          coalesce(address, ''), coalesce(telephone, ''), coalesce(mail, '') FROM patient_row";
    let mut all = Vec::new();
    for described in stores.cluster.map().shards() {
        let db = stores.cluster.database(described.id).unwrap();
        for row in db.query(Statement::sqlite(SELECT)).await.unwrap() {
            let text = |at| row.text(at).unwrap().to_owned();
            all.push(Person {
                id: row.uuid(0).unwrap(),
                given_name: text(1),
                family_name: text(2),
                birth_date: text(3),
                syn_number: text(4),
                address: text(5),
                telephone: text(6),
                mail: text(7),
            });
        }
    }
    all
}

/// What was written down of anybody.
async fn notes(stores: &Stores) -> Vec<String> {
    const SELECT: &str = "SELECT note.value ->> 'text' FROM encounter_row, json_each(notes) note";
    let mut all = Vec::new();
    for described in stores.cluster.map().shards() {
        let db = stores.cluster.database(described.id).unwrap();
        let rows = db.query(Statement::sqlite(SELECT)).await.unwrap();
        all.extend(rows.iter().map(|row| row.text(0).unwrap().to_owned()));
    }
    all
}

impl Person {
    /// Somebody of whom everything is known.
    pub(super) async fn any(stores: &Stores) -> Self {
        let mut all = everybody(stores).await.into_iter();
        all.find(|person| !person.address.is_empty() && !person.mail.is_empty()).expect("somebody is seeded")
    }

    pub(super) fn particulars(&self) -> [&str; 7] {
        let Self { given_name, family_name, birth_date, syn_number, address, telephone, mail, .. } = self;
        [given_name, family_name, birth_date, syn_number, address, telephone, mail]
    }
}

impl Particulars {
    pub(super) async fn of(stores: &Stores) -> Self {
        let mut all = BTreeSet::new();
        for person in everybody(stores).await {
            all.extend(person.particulars().map(str::to_owned));
            // Names are folded for the search; a given name in small letters may be part of any word.
            all.insert(person.family_name.to_lowercase());
        }
        let written = notes(stores).await;
        assert!(!written.is_empty(), "a past has notes");
        all.extend(written);
        all.remove("");
        Self(all)
    }

    pub(super) fn count(&self) -> usize {
        self.0.len()
    }

    /// The first one that a text holds.
    pub(super) fn found_in(&self, text: &str) -> Option<&str> {
        self.0.iter().map(String::as_str).find(|particular| text.contains(particular))
    }
}
