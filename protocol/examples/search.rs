//! Searches by the typed client: `cargo run -p ccod-protocol --example search -- SOCKET QUERY [PROJECT]`.

use ccod_protocol::Client;
use ccod_protocol::api::{Search, SearchParams};
use ccod_protocol::client::CallOptions;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(socket), Some(query)) = (arguments.next(), arguments.next()) else {
        return Err("usage: search SOCKET QUERY [PROJECT]".into());
    };
    let client = Client::connect(socket).await?;
    let params = SearchParams {
        query,
        limit: 3,
        ..SearchParams::default()
    };
    let options = arguments.next().map_or_else(CallOptions::default, CallOptions::project);
    let found = client.call::<Search>(&params, options).await?;
    for hit in found.results {
        println!("{:.2} {} {}", hit.score, hit.id, hit.passage.text);
    }
    Ok(())
}
