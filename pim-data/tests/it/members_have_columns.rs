//! What an entity's serde form has is kept whole, or refused when it is saved.

use pim_core::id::Id;
use pim_core::role::ResourceCode;
use pim_core::shard::HomeKey;
use pim_data::cluster::Cluster;
use pim_data::consistency::Consistency;
use pim_data::entity::{Column, ColumnKind, DecodeError, Entity, Table};
use pim_data::unit::UnitError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

use super::world::{Customer, Folder, Note, ShopResource, cx, read, schema_builder, settings, tell, write};

const PLAIN: Table = Table {
    name: "thing",
    home_field: Some("customer"),
    facility_field: None,
    columns: &[Column::new("name", ColumnKind::Text)],
    references: &[],
    indexes: &[],
};

/// A row of a customer with further members.
macro_rules! thing {
    ($name:ident { $($(#[$about:meta])* $field:ident: $type:ty),* } $table:expr, $facility:expr) => {
        #[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
        struct $name { id: Id<Note>, customer: Id<Customer>, version: u64, name: String, $($(#[$about])* $field: $type),* }
        impl Entity for $name {
            type Kind = Note;
            const TABLE: &'static Table = &$table;
            fn resource() -> ResourceCode {
                ShopResource::Note.into()
            }
            fn id(&self) -> Id<Note> {
                self.id
            }
            fn home(&self) -> HomeKey {
                self.customer.into()
            }
            fn facility(&self) -> Option<Uuid> {
                let facility: fn(&Self) -> Option<Uuid> = $facility;
                facility(self)
            }
            fn version(&self) -> u64 {
                self.version
            }
        }
    };
}

thing!(Extra { note: Option<String> } PLAIN, |_| None);
thing!(Flattened { #[serde(flatten)] more: BTreeMap<String, String> } PLAIN, |_| None);
thing!(Mistyped {} Table { home_field: Some("custmer"), ..PLAIN }, |_| None);
thing!(Elsewhere { other: Id<Customer> } Table { home_field: Some("other"),
    columns: &[Column::new("name", ColumnKind::Text), Column::new("customer", ColumnKind::Uuid)], ..PLAIN }, |_| None);
thing!(Forgotten { #[serde(skip)] depot: Option<Uuid> } PLAIN, |it| it.depot);
thing!(Contradicted { depot: Option<Uuid> } Table { facility_field: Some("depot"), ..PLAIN }, |_| None);
thing!(Whole { depot: Option<Uuid>, #[serde(skip)] seen: bool } Table { facility_field: Some("depot"), ..PLAIN }, |it| it.depot);

const DEPOT: Option<Uuid> = Some(Uuid::from_u128(7));

/// Saves one that is made for a customer.
fn saved<E: Entity>(cluster: &Cluster, make: impl FnOnce(Id<Note>, Id<Customer>, String) -> E) -> Option<DecodeError> {
    let customer = Id::<Customer>::random();
    let mut unit = cluster.begin(&cx(), customer);
    let thing = make(Id::child_of(customer.bucket(), unit.at()), customer, "n".to_owned());
    match unit.save(&write(ShopResource::Note), &thing) {
        Ok(_) => None,
        Err(UnitError::Decode(refused)) => Some(refused),
        Err(other) => panic!("{other}"),
    }
}

async fn cluster_of<E: Entity>(folder: &Folder) -> Cluster {
    let schema = schema_builder().entity::<E>(10_002).build().expect("a sound schema");
    Cluster::open(settings(folder, 1), schema).await.expect("opens")
}

/// Guard: `member::check`. The member would be gone at the next load, and the audit trail verified.
#[tokio::test]
async fn a_member_without_a_column_is_refused_by_name() {
    let folder = Folder::new();
    let cluster = cluster_of::<Extra>(&folder).await;
    let note = Some("important".to_owned());
    let refused = saved(&cluster, |id, customer, name| Extra { id, customer, version: 0, name, note });
    assert!(matches!(refused, Some(DecodeError::Member { table: "thing", member: "note" })), "{refused:?}");
    let more = BTreeMap::from([("ada@example.org".to_owned(), String::new())]);
    let refused = saved(&cluster, |id, customer, name| Flattened { id, customer, version: 0, name, more });
    assert!(matches!(refused, Some(DecodeError::Member { member, .. }) if !member.contains("ada")), "{refused:?}");
}

/// Guard: `member::check`. Such a row could be written and never be read.
#[tokio::test]
async fn a_home_field_holds_what_home_says() {
    let folder = Folder::new();
    let cluster = cluster_of::<Extra>(&folder).await;
    let refused = saved(&cluster, |id, customer, name| Mistyped { id, customer, version: 0, name });
    assert!(matches!(refused, Some(DecodeError::Member { member: "customer", .. })), "{refused:?}");
    let refused =
        saved(&cluster, |id, customer, name| Elsewhere { id, customer, version: 0, name, other: Id::random() });
    assert!(matches!(refused, Some(DecodeError::Home { field: "other", .. })), "{refused:?}");
}

/// Guard: `member::check`. The next load and save would take the row from its facility.
#[tokio::test]
async fn a_facility_field_holds_what_facility_says() {
    let folder = Folder::new();
    let cluster = cluster_of::<Extra>(&folder).await;
    let refused = saved(&cluster, |id, customer, name| Forgotten { id, customer, version: 0, name, depot: DEPOT });
    assert!(matches!(refused, Some(DecodeError::Facility { .. })), "{refused:?}");
    let refused = saved(&cluster, |id, customer, name| Contradicted { id, customer, version: 0, name, depot: DEPOT });
    assert!(matches!(refused, Some(DecodeError::Facility { .. })), "{refused:?}");
}

#[tokio::test]
async fn what_is_saved_is_read_back_whole() {
    let folder = Folder::new();
    let cluster = cluster_of::<Whole>(&folder).await;
    for depot in [DEPOT, None] {
        let customer = Id::<Customer>::random();
        let mut unit = cluster.begin(&cx(), customer);
        let id = Id::child_of(customer.bucket(), unit.at());
        let mut whole = Whole { id, customer, version: 0, name: "n".to_owned(), depot, seen: true };
        whole.version = unit.save(&write(ShopResource::Note), &whole).expect("saves");
        tell(&mut unit, "made");
        unit.commit().await.expect("commits");
        let found = cluster.read::<Whole>(&cx(), &read(ShopResource::Note), id, &Consistency::Strong).await;
        assert_eq!(found.expect("reads"), Some(Whole { seen: false, ..whole }));
    }
}
