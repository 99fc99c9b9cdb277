//! What the types say, compared with what real servers and their programs say.

mod backup_label;
mod control;
mod history;
mod manifest_of_many_files;
mod positions;
mod serde_text;
mod wal_page_header;
