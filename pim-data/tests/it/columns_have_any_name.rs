//! An entity's columns may be called as what the generated statements, functions and triggers call their own; what every row
//! has is taken.

use pim_core::id::Id;
use pim_core::role::ResourceCode;
use pim_core::shard::HomeKey;
use pim_data::cluster::Cluster;
use pim_data::consistency::Consistency;
use pim_data::entity::{Column, ColumnKind, Entity, Table};
use pim_data::repository::Page;
use pim_data::schema::{COLUMNS_MAX, Schema, SchemaError};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::world::{Customer, Folder, ShopResource, cx, read, schema_builder, settings, tell, write};

/// Its columns are called as variables, arguments and answers are; or as what every row has; or there are too many.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
struct Oddity<const OF: char> {
    id: Id<Customer>,
    version: u64,
    home: Option<Uuid>,
    wanted: Option<Uuid>,
    scope: String,
    record: String,
    context: String,
    replay: String,
    tail: String,
    given: String,
    facilities: String,
    tg_op: String,
    ordinality: String,
    facility: String,
    parts: String,
    answer: String,
    records: String,
    entered: String,
    given_home: String,
    one: String,
    instant: i64,
    next_version: i64,
    status: i64,
    most: i64,
}

type Free = Oddity<'f'>;
type Taken = Oddity<'t'>;
type Wide = Oddity<'w'>;

const fn text(name: &'static str) -> Column {
    Column::new(name, ColumnKind::Text)
}

const COLUMNS: &[Column] = &[
    Column::new("home", ColumnKind::Uuid).nullable(),
    Column::new("wanted", ColumnKind::Uuid).nullable(),
    text("scope"),
    text("record"),
    text("context"),
    text("replay"),
    text("tail"),
    text("given"),
    text("facilities"),
    text("tg_op"),
    text("ordinality"),
    text("facility"),
    text("parts"),
    text("answer"),
    text("records"),
    text("entered"),
    text("given_home"),
    text("one"),
    Column::new("instant", ColumnKind::Int),
    Column::new("next_version", ColumnKind::Int),
    Column::new("status", ColumnKind::Int),
    Column::new("most", ColumnKind::Int),
];

impl<const OF: char> Entity for Oddity<OF> {
    type Kind = Customer;
    const TABLE: &'static Table = &Table {
        name: "oddity",
        home_field: None,
        facility_field: None,
        columns: match OF {
            't' => &[text("valid_from")],
            'w' => &[text("many"); COLUMNS_MAX + 1],
            _ => COLUMNS,
        },
        references: &[],
        indexes: &[&["scope"]],
    };
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
        self.version
    }
}

impl Free {
    fn new(id: Id<Customer>) -> Self {
        let text = || "own %".to_owned();
        Self {
            id,
            version: 0,
            home: Some(Uuid::max()),
            wanted: None,
            scope: text(),
            record: text(),
            context: text(),
            replay: text(),
            tail: text(),
            given: text(),
            facilities: text(),
            tg_op: text(),
            ordinality: text(),
            facility: text(),
            parts: text(),
            answer: text(),
            records: text(),
            entered: text(),
            given_home: text(),
            one: text(),
            instant: -1,
            next_version: 7,
            status: 7,
            most: 0,
        }
    }
}

#[tokio::test]
async fn also_the_names_that_statements_use_for_themselves() {
    let folder = Folder::new();
    let schema = schema_builder().entity::<Free>(10_002).build().expect("free names");
    let cluster = Cluster::open(settings(&folder, 1), schema).await.expect("opens");
    let permit = read(ShopResource::Account);
    // More than calls at once, so that some go together.
    let mut rows: Vec<Free> = (0..8).map(|_| Free::new(Id::random())).collect();
    for change in ["first", "second"] {
        let mut commits = Vec::new();
        for row in &mut rows {
            change.clone_into(&mut row.scope);
            let mut unit = cluster.begin(&cx(), row.id);
            if change == "second" {
                *row = unit.load(&write(ShopResource::Account), row.id).await.expect("loads").expect("is there");
            }
            row.version = unit.save(&write(ShopResource::Account), row).expect("saves");
            tell(&mut unit, change);
            commits.push(tokio::spawn(unit.commit()));
        }
        for commit in commits {
            commit.await.expect("runs").expect("commits");
        }
    }
    for row in &rows {
        let found = cluster.read::<Free>(&cx(), &permit, row.id, &Consistency::Strong).await.expect("reads");
        assert_eq!(found.as_ref(), Some(row));
        let listed =
            cluster.list::<Free>(&cx(), &permit, row.id, Page { after: None, limit: 9 }, &Consistency::Strong).await;
        assert_eq!(listed.expect("lists"), std::slice::from_ref(row), "its own and no other one");
        let periods = cluster.history::<Free>(&cx(), &permit, row.id, Page::FIRST).await.expect("reads").periods;
        assert_eq!(periods.iter().map(|period| period.row.version).collect::<Vec<_>>(), [1, 2]);
        let first = cluster.as_of::<Free>(&cx(), &permit, row.id, periods[0].valid_from).await.expect("reads");
        assert_eq!(first.expect("was there").version, 1);
    }
}

#[test]
fn but_what_every_row_has_is_taken() {
    let refused = Schema::builder().entity::<Taken>(10_000).build();
    assert!(matches!(refused, Err(SchemaError::Identifier(name)) if name == "oddity.valid_from"));
}

/// An entity that is called as something else is, and has one index.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Called<const NAME: usize> {
    id: Id<Customer>,
}

const NAMES: [&str; 12] = [
    "audit",
    "idempotency",
    "key_head",
    "fact",
    "pim_own",
    "pg_class",
    "account_past",
    "account_row",
    "account_history",
    "account_home",
    "claim_index_0",
    "claim",
];

impl<const NAME: usize> Entity for Called<NAME> {
    type Kind = Customer;
    const TABLE: &'static Table = &Table {
        name: NAMES[NAME],
        home_field: None,
        facility_field: None,
        columns: &[text("code")],
        references: &[],
        indexes: &[&["code"]],
    };
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

/// Guard: a view of that name would hide the table from whoever reads, or not be made at all.
#[test]
fn what_others_are_called_is_taken() {
    fn with<const NAME: usize>() -> Result<Schema, SchemaError> {
        schema_builder().entity::<Called<11>>(10_002).entity::<Called<NAME>>(10_003).build()
    }
    for (number, built) in [
        with::<0>(),
        with::<1>(),
        with::<2>(),
        with::<3>(),
        with::<4>(),
        with::<5>(),
        with::<6>(),
        with::<7>(),
        with::<8>(),
        with::<9>(),
        with::<10>(),
        with::<11>(),
    ]
    .into_iter()
    .enumerate()
    {
        let refused = built.map(drop);
        assert_eq!(refused, Err(SchemaError::Identifier(NAMES[number].to_owned())));
    }
    schema_builder().entity::<Called<11>>(10_002).build().expect("a free name");
}

#[test]
fn and_there_are_no_more_than_a_function_takes() {
    let refused = Schema::builder().entity::<Wide>(10_000).build();
    assert!(matches!(refused, Err(SchemaError::Columns { table }) if table == "oddity"));
}
