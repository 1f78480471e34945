"""Images to arrays, logits to masks, masks to a judgement."""
