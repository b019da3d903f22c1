"""placeholder"""
def report(records):
    return "\n".join(f"{r['method']} {r['trained']} {r['stored_bytes']} {r['held_out_loss']:.3f} {r['scores']}" for r in records)
