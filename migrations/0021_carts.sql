-- A session key's cart: the events that it is made of, each a line of JSON, `[at, eventId, item, quantity, price]`, `at` in
-- microseconds since 1970, without an item for a purchase. What no cart needs any more is taken out when there is much of
-- it. In this row, since it is locked and written with every batch of its key anyway.
ALTER TABLE session_keys
    ADD COLUMN cart      text,
    -- The half hour of its latest event, since 1970: carts are listed and removed by it. It changes seldom.
    ADD COLUMN cart_slot integer;
UPDATE session_keys k SET cart = c.lines, cart_slot = c.slot
FROM (SELECT generation, project, session_id, floor(extract(epoch FROM max(at)) / 1800) AS slot,
             string_agg(json_build_array((extract(epoch FROM at) * 1000000)::bigint, event_id, item, quantity,
                                         price::text)::text || E'\n', '') AS lines
      FROM cart_events GROUP BY generation, project, session_id) c
WHERE (k.generation, k.project, k.session_id) = (c.generation, c.project, c.session_id);
DROP TABLE cart_events;
CREATE INDEX session_keys_by_cart ON session_keys (generation, project, cart_slot, session_id)
    WHERE cart_slot IS NOT NULL;
