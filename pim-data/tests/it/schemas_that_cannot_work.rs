//! A schema that could not be opened, written or upgraded is refused when it is built, by name.

use pim_core::id::Id;
use pim_core::role::ResourceCode;
use pim_core::shard::HomeKey;
use pim_data::entity::{Column, ColumnKind, Entity, Table};
use pim_data::migration::Migration;
use pim_data::schema::{Schema, SchemaError};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::world::{Customer, ShopResource};

const PLAIN: Table = Table {
    name: "thing",
    home_field: None,
    facility_field: None,
    columns: &[Column::new("name", ColumnKind::Text), Column::new("other", ColumnKind::Uuid)],
    references: &[],
    indexes: &[],
};

/// Tables, of which all but two are wrong.
const TABLES: [Table; 11] = [
    PLAIN,
    Table { name: "later", references: &[("other", "thing"), ("other", "later"), ("home_key", "thing")], ..PLAIN },
    Table { name: "typo", references: &[("other", "things")], ..PLAIN },
    Table { name: "nothing_there", references: &[("others", "thing")], ..PLAIN },
    Table { indexes: &[&["name", "nme"]], ..PLAIN },
    Table { columns: &[Column::new("to", ColumnKind::Uuid)], ..PLAIN },
    Table { columns: &[Column::new("position", ColumnKind::Text)], ..PLAIN },
    Table { name: "order", ..PLAIN },
    Table { home_field: Some("other"), ..PLAIN },
    Table { facility_field: Some("version"), ..PLAIN },
    Table { home_field: Some("depot"), facility_field: Some("depot"), ..PLAIN },
];

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Thing<const OF: usize> {
    id: Id<Customer>,
}

impl<const OF: usize> Entity for Thing<OF> {
    type Kind = Customer;
    const TABLE: &'static Table = &TABLES[OF];
    fn resource() -> ResourceCode {
        ShopResource::Account.into()
    }
    fn id(&self) -> Id<Customer> {
        self.id
    }
    fn home(&self) -> HomeKey {
        self.id.into()
    }
    fn facility(&self) -> Option<Uuid> {
        None
    }
    fn version(&self) -> u64 {
        0
    }
}

/// Guard: the numbers in `SchemaBuilder::build`. A later release of the crates would come with such a number, and its databases
/// could not be opened any more.
#[test]
fn numbers_of_the_crates_are_theirs() {
    for number in [1, 5, 48, 1000, 9_999] {
        let step = [Migration::new(number, "a step", "SELECT 1")];
        for refused in [
            Schema::builder().entity::<Thing<0>>(number),
            Schema::builder().control_entity::<Thing<0>>(number),
            Schema::builder().shard_migrations(&step),
            Schema::builder().control_migrations(&step),
        ] {
            assert_eq!(refused.build().map(drop), Err(SchemaError::Reserved(number)));
        }
    }
    Schema::builder().entity::<Thing<0>>(10_000).build().expect("a number of its own");
}

/// Guard: `check_references`. A server could not make such a table; a file would take it, and refuse each row.
#[test]
fn references_are_to_earlier_entities_of_the_same_database() {
    let refused = |of: &str, to: &str| {
        Err(SchemaError::Reference { table: of.to_owned(), column: "other".to_owned(), entity: to.to_owned() })
    };
    let built = Schema::builder().entity::<Thing<0>>(10_000).entity::<Thing<2>>(10_001).build();
    assert_eq!(built.map(drop), refused("typo", "things"));
    let built = Schema::builder().entity::<Thing<1>>(10_000).entity::<Thing<0>>(10_001).build();
    assert_eq!(built.map(drop), refused("later", "thing"), "has the higher number");
    let built = Schema::builder().control_entity::<Thing<0>>(10_000).entity::<Thing<1>>(10_001).build();
    assert_eq!(built.map(drop), refused("later", "thing"), "lives elsewhere");
    // The order of the calls is no matter.
    Schema::builder().entity::<Thing<1>>(10_001).entity::<Thing<0>>(10_000).build().expect("refers to an earlier one");
}

/// Guard: `check_uses`.
#[test]
fn indexes_and_references_are_over_columns_that_are_there() {
    let refused =
        |table: &str, column: &str| Err(SchemaError::NoColumn { table: table.to_owned(), column: column.to_owned() });
    let built = Schema::builder().entity::<Thing<0>>(10_000).entity::<Thing<3>>(10_001).build();
    assert_eq!(built.map(drop), refused("nothing_there", "others"));
    assert_eq!(Schema::builder().entity::<Thing<4>>(10_000).build().map(drop), refused("thing", "nme"));
}

/// Guard: `check_name`. The engine's word for it would be a syntax error near something.
#[test]
fn keywords_of_either_engine_are_no_names() {
    let refused = |name: &str| Err(SchemaError::Keyword(name.to_owned()));
    assert_eq!(Schema::builder().entity::<Thing<5>>(10_000).build().map(drop), refused("thing.to"));
    assert_eq!(Schema::builder().entity::<Thing<6>>(10_000).build().map(drop), refused("thing.position"));
    assert_eq!(Schema::builder().entity::<Thing<7>>(10_000).build().map(drop), refused("order"));
}

/// Guard: `check_fields`. Such rows could be written and never be read: serde finds a member twice.
#[test]
fn a_field_is_filled_from_one_place() {
    let refused = |field: &str| Err(SchemaError::Twice { table: "thing".to_owned(), field: field.to_owned() });
    assert_eq!(Schema::builder().entity::<Thing<8>>(10_000).build().map(drop), refused("other"));
    assert_eq!(Schema::builder().entity::<Thing<9>>(10_000).build().map(drop), refused("version"));
    assert_eq!(Schema::builder().entity::<Thing<10>>(10_000).build().map(drop), refused("depot"));
}
