//! The twin of `text_in_a_line`: numbers, static words and opaque ids are taken.

use pim_core::context::RequestId;

struct Person {
    id: uuid::Uuid,
}

impl std::fmt::Display for Person {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(&self.id, f)
    }
}

fn main() {
    let person = Person { id: uuid::Uuid::nil() };
    pim_core::info!("person.seen", request_id = RequestId::mint(), who = person.id);
    pim_core::info!("person.seen", request_id = RequestId::mint(), who = "somebody");
}
