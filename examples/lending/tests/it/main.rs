//! What the README promises of the library.

mod a_book_is_lent;
