"""How the embedded model was made: trained, attacked, and its behaviour measured."""
